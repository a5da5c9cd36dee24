"""The figures of the site: all in both shades, small, the same whenever drawn, and honest."""

from __future__ import annotations

import re

import pytest
from benchmarks.figures import drawing
from benchmarks.figures.__main__ import main, provenance
from helpers import statistics

from slimdiff import Budget, Sampling, allocate


@pytest.fixture(scope="module")
def stats():
    sampling = Sampling(steps=3, guidance=2.5, seed=11)
    return statistics(versions={"torch": "1.2", "diffusers": "3.4"}, sampling=sampling)


@pytest.fixture(autouse=True)
def within_reach(monkeypatch):
    monkeypatch.setattr(drawing, "POOL", 0.7)
    monkeypatch.setattr(drawing, "_POOLS", (0.9, 0.7))


def test_every_figure_is_small_in_both_shades_and_the_same_again(stats, tmp_path):
    first = drawing.draw_all(stats, tmp_path / "a")
    again = drawing.draw_all(stats, tmp_path / "b")
    shades = [f"{n}-{s}.svg" for n in ("curves", "gains", "policies") for s in ("light", "dark")]
    assert [path.name for path in first] == shades
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.stat().st_size < 120_000
        assert not re.search(
            r"https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", one.read_text()
        )


def test_curves_have_a_line_a_site_and_a_dot_where_it_is_cut(stats):
    plan = allocate(stats, Budget(pool=drawing.POOL))
    cut = [site for site, width in plan.widths.items() if width < plan.full[site]]
    assert cut
    charts = drawing.bars([drawing.SiteRow(*row) for row in plan.rows()])
    lines = [line for panel in drawing._curves(stats, plan, charts).axes for line in panel.lines]
    dots = [line for line in lines if line.get_marker() == "o"]
    assert len(lines) - len(dots) == len(plan.widths)
    shares = sorted(float(dot.get_xdata()[0]) for dot in dots)
    assert shares == sorted(plan.widths[site] / plan.full[site] for site in cut)


def test_provenance_names_model_seed_and_versions(stats, tmp_path):
    said = provenance(stats)
    for words in ("`tiny`", "4 prompts", "3 steps", "guidance 2.5", "seed 11", "torch 1.2"):
        assert words in said, said
    stats.save(tmp_path / "stats")
    main([str(tmp_path / "stats"), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out/provenance.md").read_text() == said
