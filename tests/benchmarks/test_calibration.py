"""What the calibration study asks, and how it tells the answers."""

from __future__ import annotations

from dataclasses import asdict, replace

from benchmarks.calibration.__main__ import markdown
from benchmarks.calibration.variants import FULL, QUICK, Variant, variants


def test_the_plain_calibration_is_among_every_questions_variants():
    for ranges in (FULL, QUICK):
        plain = Variant(ranges.prompts, ranges.steps, ranges.seeds[0])
        for question, asked in variants(ranges).items():
            assert plain in asked, question
            assert len({v.name for v in asked}) == len(asked)


def test_tables_give_ratios_to_the_plain_calibration():
    results = [
        {**asdict(Variant(n, 2, s)), "noise_rel_mse": e}
        for n, s, e in ((2, 0, 4e-3), (2, 1, 2e-3), (4, 0, 1.5e-3), (4, 1, 0.5e-3))
    ]
    origin = {
        "model": "emoji",
        "device": "cpu",
        "versions": {"torch": "2", "diffusers": "1"},
        "settings": {"held_out": 2, "guidance": 2.0},
        "ranges": asdict(replace(QUICK, prompts=4)),
    }
    text = markdown({"prompts": results}, origin)
    assert "| 2 | 3.00e-03 (2.00e-03 to 4.00e-03) | x3.000 |" in text
    assert "| 4 | 1.00e-03 (5.00e-04 to 1.50e-03) | x1.000 |" in text
    assert "changed of 4 random prompts, 2 steps" in text
