"""A family added as CONTRIBUTING says: one file, which the contract suite then finds."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import test_families

from slimdiff import SlimdiffError, families

TOY = """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from slimdiff.families import Family, register
from slimdiff.families.blocks import shared_block_sites


class ToyDenoiser(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 6):
        super().__init__()
        self.attn1 = Attention(width, heads=2, dim_head=4, bias=True)
        self.ff = FeedForward(width, inner_dim=8)

    def forward(self, sample, timestep):
        sample = sample + self.attn1(sample)
        return (sample + self.ff(sample),)


def _tiny():
    torch.manual_seed(0)
    return ToyDenoiser().eval(), {"sample": torch.randn(2, 5, 6), "timestep": torch.tensor(1)}


register(Family("toy", ("ToyDenoiser",), shared_block_sites, _tiny))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The file in a folder of its own that counts as part of ``slimdiff.families``."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    yield importlib.import_module("slimdiff.families.toy")
    del sys.modules["slimdiff.families.toy"], families.toy


def test_one_file_adds_a_family_that_keeps_the_contract(toy, tmp_path):
    (family,) = [f for f in families.families() if f.name == "toy"]
    watched = test_families.Watched(family, family.tiny)
    assert families.find(watched.model) is family
    assert {site.kind for site in watched.free} == {"qk", "vo", "ffn"}
    contract = {k: v for k, v in vars(test_families).items() if k.startswith("test_")}
    assert len(contract) >= 8
    for test in contract.values():
        given = {"watched": watched, "tmp_path": tmp_path / "saved"}
        test(**{name: given[name] for name in inspect.signature(test).parameters})


def test_without_the_file_it_is_refused_with_what_is_supported_and_how_to_add_it(toy):
    model, _ = toy._tiny()
    del families._FAMILIES["ToyDenoiser"]
    with pytest.raises(SlimdiffError) as refusal:
        families.find(model)
    text = str(refusal.value)
    assert "Denoiser class ToyDenoiser is not supported" in text
    for name in (
        "UNet2DConditionModel", "PixArtTransformer2DModel", "DiTTransformer2DModel",
        "SD3Transformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel",
    ):  # fmt: skip
        assert name in text
    assert "CONTRIBUTING.md" in text
