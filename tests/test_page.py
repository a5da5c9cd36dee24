"""The report page: self-contained, escaped, made again from its folder, refused when damaged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_pipeline

import slimdiff
from slimdiff.page import find_report, write_page
from slimdiff.page.charts import bars, curves, log_scale, strip
from slimdiff.page.figures import Curve, SiteRow
from slimdiff.pictures import difference, shown_first

SAMPLING = slimdiff.Sampling(steps=3, guidance=3.0, batch_size=2)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'& {{ 7 * 7 }}"
VOID = {"meta", "img", "input", "br", "link", "hr", "line", "rect", "circle", "polyline"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of a tiny pipeline with hostile prompts and names, saved."""
    pipe = tiny_pipeline()
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING, name=EVIL)
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)
    slim = tiny_pipeline()
    slimdiff.compress_(slim, stats, plan)
    report = slimdiff.compare(
        pipe, slim, [EVIL, "plain", "other"], sampling=SAMPLING, statistics=stats
    )
    folder = tmp_path_factory.mktemp("report")
    report.save(folder)
    return report, folder


class Reader(HTMLParser):
    """Collects tags, attributes and text; raises on tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.handlers = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def read(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return text, reader


def test_the_page_is_one_well_formed_file_that_asks_for_nothing(made):
    text, reader = read(made[1])
    assert reader.addresses
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert not re.search(r"https?://|@import|url\(|<link", text)


def test_prompts_and_names_are_text_never_markup(made):
    text, reader = read(made[1])
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert reader.tags.count("script") == 1
    assert not reader.handlers
    assert "{{ 7 * 7 }}" in text


def test_the_page_shows_what_was_asked_got_measured_and_how_to_load(made):
    report, folder = made
    text, _ = read(folder)
    for wanted in (
        "pool at most 0.5",
        f"{100 * report.pool.kept:.2f} % of the pool",
        f"{report.fidelity.psnr_db:.1f} dB",
        "95 % interval",
        "predicted",
        "DiffusionPipeline.from_pretrained",
        "prefers-color-scheme: dark",
        "@media print",
        *report.plan.widths,
    ):
        assert wanted in text, wanted
    assert text.count('class="cut"') == len(report.plan.widths)
    assert "No error curves" not in text


def test_a_report_without_statistics_says_that_curves_are_missing(made, tmp_path):
    report, _ = made
    replace(report, curves={}).save(tmp_path)
    text, _ = read(tmp_path)
    assert "No error curves" in text
    assert 'class="cut"' not in text


def test_it_is_made_again_from_figures_and_pictures_alone(made, tmp_path):
    import shutil

    shutil.copytree(made[1], tmp_path / "slim/report")
    page = tmp_path / "slim/report/report.html"
    before = page.read_bytes()
    page.unlink()
    write_page(find_report(tmp_path / "slim"))
    assert page.read_bytes() == before
    next((tmp_path / "slim/report/pictures").glob("*-slim.png")).unlink()
    write_page(tmp_path / "slim/report")
    assert page.read_text().count("<figure") == 2


def test_no_report_is_said_so(tmp_path):
    with pytest.raises(slimdiff.SlimdiffError, match=r"No report in .*expected report.json"):
        find_report(tmp_path)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("params.kept", lambda v: v["params"].update(kept="much")),
        ("sites.0.full", lambda v: v["sites"][0].update(full=0)),
        ("pictures.0.number", lambda v: v["pictures"][0].update(number="../../etc/passwd")),
        ("pictures.0.number", lambda v: v["pictures"][0].update(number=-1)),
        ("budget.colour", lambda v: v["budget"].update(colour=1)),
        ("model", lambda v: v.pop("model")),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(made, tmp_path, place, change):
    value = json.loads((made[1] / "report.json").read_text())
    change(value)
    (tmp_path / "report.json").write_text(json.dumps(value))
    with pytest.raises(slimdiff.SlimdiffError, match=f"is not a report at '{place}"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_picture_is_refused(made, tmp_path):
    import shutil

    shutil.copytree(made[1], tmp_path / "report")
    path = next((tmp_path / "report/pictures").glob("*-dense.png"))
    path.write_bytes(b"GIF89a" + bytes(30))
    with pytest.raises(slimdiff.SlimdiffError, match="is not a PNG picture"):
        write_page(tmp_path / "report")


def test_intervals_hold_the_mean_and_samples_are_the_pictures(made):
    found = made[0].fidelity
    assert set(found.intervals) == {"noise_rel_mse", "latent_rel_mse", "psnr_db", "ssim"}
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high
    assert [len(values) for values in found.samples.values()] == [3, 3]
    assert sum(found.samples["psnr_db"]) / 3 == pytest.approx(found.psnr_db)
    assert len(found.calls) == 3
    assert min(found.calls) <= found.noise_rel_mse <= max(found.calls)


def test_the_first_and_the_most_changed_pictures_are_shown():
    ssim = [0.9] * 20
    ssim[3], ssim[17], ssim[19] = 0.1, 0.2, 0.3
    assert shown_first(ssim) == [*range(16), 17, 19, 16, 18]
    assert shown_first([1.0]) == [0]


def test_difference_is_black_where_equal_and_ends_at_full():
    a = np.zeros((4, 4, 3), dtype=np.uint8)
    b = a.copy()
    b[0, 0, 1] = 40
    b[1, 1] = 255
    found = np.asarray(difference(Image.fromarray(a), Image.fromarray(b), 40.0))
    assert found[3, 3].sum() < 10
    assert (found[0, 0] == found[1, 1]).all()
    assert found[0, 0].sum() > 600


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=8))
def test_a_log_scale_holds_its_values_in_order(values):
    scale = log_scale(values)
    assert 0 < scale.low < scale.high
    places = [scale.place(v) for v in sorted(values)]
    assert all(0 <= p <= 1 for p in places)
    assert places == sorted(places)
    assert scale.ticks[0] == (pytest.approx(scale.low), 0.0)


def test_bars_stand_in_the_order_of_the_model_and_fill_the_width():
    names = ["down_blocks.0.a", "up_blocks.1.a", "up_blocks.1.b", "mid_block.a"]
    rows = [SiteRow(f"{n}.qk", 8, w, 1, 0.1) for n, w in zip(names, (2, 4, 6, 8), strict=True)]
    (chart,) = bars([*rows])
    assert [bar.row.width for bar in chart.bars] == [2, 8, 4, 6]
    assert [label for label, *_ in chart.stages] == ["down 0", "mid", "up 1"]
    assert sum(breadth for *_, breadth in chart.stages) == pytest.approx(100)
    assert chart.bars[0].kept == 25
    assert chart.kept == 20 / 32
    assert [c.kind for c in bars([*rows, SiteRow("x.odd", 8, 2, 1, 0.0)])] == ["qk", "odd"]


def test_a_curve_is_cut_where_the_plan_says():
    rows = [SiteRow("a.vo", 4, 2, 1, 0.5)]
    (chart,) = curves(rows, {"a.vo": Curve((0, 2, 4), (1.0, 1e-2, 0.0))})
    (line,) = chart.lines
    assert line.error == 1e-2
    assert line.cut[0] == 50
    assert f"{line.cut[0]},{line.cut[1]}" in line.points


def test_a_strip_needs_two_samples_and_keeps_within_its_ends():
    assert strip([1.0], 1.0, None) is None
    found = strip([1.0, 3.0, 2.0], 2.0, (1.5, 9.0))
    assert found is not None
    assert found.places == (0.0, 100.0, 50.0)
    assert found.interval == (25.0, 100.0)
