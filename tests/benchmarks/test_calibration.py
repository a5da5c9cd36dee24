"""What the calibration study asks, and how it tells the answers."""

from __future__ import annotations

from benchmarks.calibration.__main__ import markdown
from benchmarks.calibration.variants import FULL, QUICK, Variant, variants


def test_the_default_is_among_every_questions_variants():
    for ranges in (FULL, QUICK):
        default = Variant(ranges.prompts, ranges.steps, ranges.seeds[0])
        for question, asked in variants(ranges).items():
            assert default in asked, question
            assert len({v.name for v in asked}) == len(asked)


def test_tables_give_ratios_to_the_default():
    results = [
        {"prompts": n, "steps": 2, "seed": s, "pick": "random", "noise_rel_mse": e}
        for n, s, e in ((2, 0, 4e-3), (2, 1, 2e-3), (4, 0, 1.5e-3), (4, 1, 0.5e-3))
    ]
    text = markdown({"prompts": results}, 4)
    assert "| 2 | 2 | 3.00e-03 | x3.000 |" in text
    assert "| 4 | 4 | 1.00e-03 | x1.000 |" in text
