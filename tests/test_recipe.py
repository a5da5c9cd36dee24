"""The main path on a tiny pipeline, through the library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_pipeline

import slimdiff
from slimdiff import Sampling, SlimdiffError
from slimdiff.decomposition import Basis, Method
from slimdiff.denoiser import denoiser, fingerprint
from slimdiff.recipe import copy_pipeline

PROMPTS = [f"thing {i}" for i in range(12)]
SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, PROMPTS[:4], sampling=SAMPLING)


def test_slim_leaves_the_dense_pipeline_alone_and_meets_the_budget(pipe):
    before = fingerprint(denoiser(pipe))
    slim, report = slimdiff.slim(
        pipe, PROMPTS, slimdiff.Budget(pool=0.6), num_prompts=4, sampling=SAMPLING, multiple=2
    )
    assert fingerprint(denoiser(pipe)) == before
    assert 0.5 < report.pool.kept <= 0.6
    assert denoiser(slim).num_parameters() == report.params.slim < report.params.dense
    assert report.macs.slim < report.macs.dense
    assert report.fidelity.noise_rel_mse > 0
    assert slim.vae is pipe.vae


def test_full_budget_changes_nothing(pipe, stats):
    plan = slimdiff.allocate(stats, slimdiff.Budget(params=1.0))
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, plan)
    report = slimdiff.compare(pipe, slim, [(9, "thing")], sampling=SAMPLING)
    assert report.fidelity.noise_rel_mse == 0
    assert report.params.kept == 1


def test_error_grows_as_the_pool_shrinks_from_one_calibration(pipe, stats):
    errors = []
    for pool in (0.9, 0.6, 0.3):
        plan = slimdiff.allocate(stats, slimdiff.Budget(pool=pool), multiple=2)
        slim = copy_pipeline(pipe)
        slimdiff.compress_(slim, stats, plan)
        report = slimdiff.compare(pipe, slim, [(9, "thing")], sampling=SAMPLING)
        errors.append(report.fidelity.noise_rel_mse)
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_predicted_error_is_near_the_achieved_on_the_calibration_prompts(pipe):
    # All tokens: so few prompts have none to spare.
    stats = slimdiff.calibrate(pipe, PROMPTS[:4], sampling=SAMPLING, tokens=None)
    # Cross-attention keys of a short context are rank-deficient; float32 noise in their moments
    # must not turn into directions.
    for pool in (0.8, 0.5):
        plan = slimdiff.allocate(stats, slimdiff.Budget(pool=pool), multiple=2)
        slim = copy_pipeline(pipe)
        slimdiff.compress_(slim, stats, plan)
        report = slimdiff.compare(pipe, slim, stats.header.prompts, sampling=SAMPLING)
        assert 1 / 3 < report.fidelity.noise_rel_mse / plan.predicted_error < 3


def test_same_statistics_give_the_same_plan(stats):
    plans = [slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2) for _ in range(2)]
    assert plans[0] == plans[1]
    assert str(plans[0]) == str(plans[1])


def test_halves_of_the_prompts_merge_to_the_whole(pipe, stats):
    halves = [
        slimdiff.calibrate(pipe, PROMPTS[i : i + 2], sampling=SAMPLING, start=i) for i in (0, 2)
    ]
    merged = slimdiff.merge(halves)
    assert merged.header.prompts == stats.header.prompts
    assert not merged.complete
    for site, sums in stats.sums.items():
        for name, whole in sums.items():
            worst = (merged.sums[site][name] - whole).abs().max() / whole.abs().max()
            assert worst < 1e-6, (site, name)


def test_merged_statistics_are_finished_with_the_model(pipe, stats):
    from slimdiff.calibration import finish

    halves = [
        slimdiff.calibrate(pipe, PROMPTS[i : i + 2], sampling=SAMPLING, start=i) for i in (0, 2)
    ]
    merged = slimdiff.merge(halves)
    with pytest.raises(slimdiff.SlimdiffError, match="incomplete or were merged"):
        slimdiff.allocate(merged, slimdiff.Budget(pool=0.5))
    budget = slimdiff.Budget(pool=0.5)
    plan = slimdiff.allocate(finish(pipe, merged), budget, multiple=2)
    assert plan.widths == slimdiff.allocate(stats, budget, multiple=2).widths


def test_calibration_stopped_between_batches_resumes_to_the_same_sums(pipe, stats, tmp_path):
    import slimdiff.gathering as gathering

    calls = []
    original = gathering.sample_latents

    def stopping(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "sample_latents", stopping)
        options = {"sampling": SAMPLING, "folder": tmp_path / "s", "save_every": 0}
        with pytest.raises(KeyboardInterrupt):
            slimdiff.calibrate(pipe, PROMPTS[:4], **options)
    assert slimdiff.Statistics.load(tmp_path / "s").header.done == 2
    resumed = slimdiff.calibrate(pipe, PROMPTS[:4], sampling=SAMPLING, folder=tmp_path / "s")
    for site, sums in stats.sums.items():
        assert all(torch.equal(resumed.sums[site][name], whole) for name, whole in sums.items())
    assert slimdiff.Statistics.load(tmp_path / "s").complete


def test_prompts_are_sampled_alike_in_any_batch(pipe):
    from slimdiff.sampling import sample_latents

    both = sample_latents(pipe, [(0, "thing 0"), (1, "thing 1")], SAMPLING)
    alone = sample_latents(pipe, [(1, "thing 1")], SAMPLING)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_an_edited_plan_applies_with_unequal_widths(pipe, stats, tmp_path):
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.9), multiple=4)
    site = next(name for name in plan.widths if name.endswith("attn1.qk"))
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(path.read_text().replace(f'"{site}": {plan.widths[site]}', f'"{site}": 3', 1))
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, slimdiff.Plan.load(path))
    attention = denoiser(slim).get_submodule(site.removesuffix(".qk"))
    assert attention.to_q.out_features == 3 * attention.heads
    assert type(attention.processor).__name__ == "SlimAttnProcessor"
    report = slimdiff.compare(pipe, slim, [(9, "thing")], sampling=SAMPLING)
    assert 0 < report.fidelity.noise_rel_mse < 1


def test_held_out_prompts_never_calibrate_and_keep_their_seeds():
    from slimdiff.prompts import HELD_OUT_FROM, split

    calibration, held_out = split([*PROMPTS, PROMPTS[-1]], 64)
    assert len(held_out) == 8
    assert not set(calibration) & {text for _, text in held_out}
    assert [index for index, _ in held_out] == list(range(HELD_OUT_FROM, HELD_OUT_FROM + 8))
    _, given = split(PROMPTS, 3, held_out=PROMPTS[5:7])
    assert given == [(HELD_OUT_FROM, PROMPTS[5]), (HELD_OUT_FROM + 1, PROMPTS[6])]
    with pytest.raises(slimdiff.SlimdiffError, match="Every calibration prompt is also held out"):
        split(PROMPTS[:2], 2, held_out=PROMPTS)


def test_compare_takes_plain_prompts_and_refuses_none(pipe, stats):
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.6), multiple=2)
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, plan)
    a = slimdiff.compare(pipe, slim, ["thing"], sampling=SAMPLING)
    b = slimdiff.compare(pipe, slim, [(1_000_000, "thing")], sampling=SAMPLING)
    assert a.fidelity == b.fidelity
    with pytest.raises(slimdiff.SlimdiffError, match="No prompts to compare on"):
        slimdiff.compare(pipe, slim, [], sampling=SAMPLING)
    with pytest.raises(slimdiff.SlimdiffError, match="second pipeline is not slim"):
        slimdiff.compare(pipe, pipe, ["thing"], sampling=SAMPLING)


def test_what_an_edited_plan_predicts_is_worked_out_anew(pipe, stats):
    from dataclasses import replace

    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.9), multiple=2)
    lower = slimdiff.allocate(stats, slimdiff.Budget(pool=0.6), multiple=2)
    edited = replace(plan, widths=lower.widths, pool=1, parameters=1)
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, edited)
    recorded = slimdiff.compression.plan_of(slim)
    assert recorded.predicted == lower.predicted
    assert (recorded.pool, recorded.parameters) == (plan.pool, plan.parameters)


def test_maps_are_worked_out_in_one_place_wherever_bases_and_sums_lie():
    seen = []

    def maps(basis, moments, width):
        seen.extend([*basis.tensors.values(), *moments.values()])
        return {}

    method = Method(lambda moments, readers: pytest.fail("decomposed"), maps)
    basis = Basis({"order": torch.ones(2)}, torch.ones(3))
    method.maps_on(torch.device("meta"), basis, {"augmented": torch.ones(3, 3)}, 1)
    assert [tensor.device.type for tensor in seen] == ["meta", "meta"]


def test_calibration_takes_ten_steps_at_most_unless_told_and_comparing_takes_all(pipe):
    assert [Sampling(steps=n).calibrating.steps for n in (4, 10, 50)] == [4, 10, 10]
    assert Sampling(steps=50, calibration_steps=30).calibrating.steps == 30
    assert Sampling(steps=50).calibrating.calibrating == Sampling(steps=50).calibrating
    with pytest.raises(SlimdiffError, match="calibration_steps is 0; expected 1 or more"):
        Sampling(calibration_steps=0)


def test_statistics_of_fewer_steps_are_what_drawing_in_fewer_steps_gives(pipe, tmp_path):
    few, many = (replace(SAMPLING, steps=n, calibration_steps=2) for n in (2, 5))
    stats = slimdiff.calibrate(pipe, PROMPTS[:4], sampling=many, folder=tmp_path)
    drawn = slimdiff.calibrate(pipe, PROMPTS[:4], sampling=SAMPLING)
    for site, sums in drawn.sums.items():
        for name, moment in sums.items():
            assert torch.equal(stats.sums[site][name], moment), (site, name)
    assert stats.header.gains == drawn.header.gains
    assert stats.header.sampling.steps == 5
    again = slimdiff.calibrate(pipe, PROMPTS[:4], sampling=few, folder=tmp_path)
    assert again.header.seconds == stats.header.seconds  # taken, not gathered anew
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.8), multiple=2)
    assert plan.calibration["steps"] == 2
    assert plan.calibration["sampling"]["steps"] == 5
