"""The model card says where a slim model comes from and keeps its licence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_pipeline

import slimdiff
from slimdiff.card import model_card
from slimdiff.compression import plan_of, record_plan_
from slimdiff.recipe import copy_pipeline

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def slim():
    pipe = tiny_pipeline()
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING, name="owner/model")
    slim = copy_pipeline(pipe)
    slimdiff.compress_(
        slim, stats, slimdiff.allocate(stats, slimdiff.Budget(pool=0.6), multiple=2)
    )
    return slim


def test_a_saved_pipeline_has_a_card_that_the_hub_reads(slim, tmp_path):
    slimdiff.save(slim, tmp_path / "slim")
    card = ModelCard.load(tmp_path / "slim" / "README.md")
    assert card.data.base_model == "owner/model"
    assert card.data.base_model_relation == "quantized"
    assert card.data.library_name == "diffusers"
    plan = plan_of(slim)
    assert f"{plan.parameters - plan.removed:,} of {plan.parameters:,} parameters" in card.text
    assert "calibrated on 2 prompts, 2 steps, guidance 3.0, seed 0" in card.text.lower()
    assert "import slimdiff" in card.text


def test_the_licence_is_inherited(slim, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\ntags:\n- x\n---\nA model.\n")
    pipe = copy_pipeline(slim)
    pipe.register_to_config(_name_or_path=str(tmp_path))
    assert ModelCard(model_card(pipe, plan_of(pipe))).data.license == "openrail++"
    assert ModelCard(model_card(slim, plan_of(slim))).data.license is None


def test_a_local_model_names_no_repository(slim):
    plan = plan_of(slim)
    local = replace(plan, calibration={**plan.calibration, "model": "some folder"})
    pipe = copy_pipeline(slim)
    record_plan_(pipe, local)
    assert ModelCard(model_card(pipe, plan_of(pipe))).data.base_model is None
