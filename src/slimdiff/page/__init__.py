"""The report as one HTML file that needs nothing else: no network, no other file.

Everything comes from report.json and the kept pictures, so the page can be made again at any time.
Text is escaped by the template engine; what the JSON holds is validated first.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..errors import SlimdiffError
from ..files import write_text
from ..pictures import data_url, difference, pair_files, pixelated
from .charts import bars, curves, log_scale, strip
from .figures import Amounts, Figures, Shown, read_figures

__all__ = ["find_report", "render", "write_page"]

JSON, PAGE = "report.json", "report.html"
_METRICS = (
    ("noise_rel_mse", "Denoiser output", "relative squared error, same inputs", None, ""),
    ("latent_rel_mse", "Final latents", "relative squared error, same noise", None, ""),
    ("psnr_db", "PSNR of the pictures", "against the dense picture, at most 100", "{:.1f}", " dB"),
    ("ssim", "SSIM of the pictures", "against the dense picture, 1 is equal", "{:.4f}", ""),
)
_LEAST_DIFFERENCE = 16.0


@dataclass(frozen=True)
class Pair:
    """The pictures of one prompt as data addresses."""

    shown: Shown
    dense: str
    slim: str
    difference: str
    pixels: bool


def find_report(folder: Path) -> Path:
    """The report folder that ``folder`` is or holds. Raises SlimdiffError if there is none."""
    for place in (folder, folder / "report"):
        if (place / JSON).is_file():
            return place
    raise SlimdiffError(
        f"No report in '{folder}': expected {JSON} there or in 'report'. Make one with slimdiff "
        "compare."
    )


def write_page(folder: Path) -> Path:
    """Make report.html from report.json and pictures/ in ``folder``; returns its path."""
    figures = read_figures(folder / JSON)
    pairs, full = _pairs(figures, folder)
    write_text(folder / PAGE, render(figures, pairs, full))
    return folder / PAGE


def render(figures: Figures, pairs: list[Pair], full: float) -> str:
    """The page; ``full`` is the difference, in 0..255, at which the difference maps end."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"percent": _percent, "short": _short, "duration": _duration}
    template = environment.from_string(_asset("template.html"))
    f = figures.fidelity
    return template.render(
        f=figures,
        pairs=pairs,
        full=full,
        style=Markup(_asset("style.css")),
        script=Markup(_asset("script.js")),
        amounts=_amounts(figures),
        asked={k: v for k, v in figures.budget.items() if v is not None},
        bars=bars(figures.sites),
        curves=curves(figures.sites, dict(figures.curves)),
        error_scale=log_scale(
            [figures.predicted_noise_rel_mse, f.noise_rel_mse, *f.calls]
            + list(f.intervals.get("noise_rel_mse", ()))
        ),
        metrics=[_metric(figures, *row) for row in _METRICS],
    )


def _amounts(f: Figures) -> list[tuple[str, Amounts, str, str]]:
    """Title, figures, and dense and slim as text."""

    def row(title: str, amounts: Amounts, unit: float, form: str) -> tuple[str, Amounts, str, str]:
        return title, amounts, form.format(amounts.dense / unit), form.format(amounts.slim / unit)

    return [
        row("Parameters", f.params, 1e6, "{:,.2f} M"),
        row("Slimmable pool", f.pool, 1e6, "{:,.2f} M"),
        row("Multiply-adds a step", f.macs, 1e9, "{:,.2f} G"),
        row("Weights", f.bytes, 2**20, "{:,.1f} MiB"),
    ]


def _metric(
    f: Figures, name: str, title: str, note: str, form: str | None, unit: str
) -> dict[str, Any]:
    show = form.format if form else _short
    value, interval = getattr(f.fidelity, name), f.fidelity.intervals.get(name)
    samples = f.fidelity.samples.get(name, ())
    return {
        "title": title,
        "note": note,
        "value": show(value) + unit,
        "interval": [show(x) for x in interval] if interval else None,
        "strip": strip(samples, value, interval),
        "ends": [show(x) for x in (min(samples), max(samples))] if samples else None,
    }


def _pairs(figures: Figures, folder: Path) -> tuple[list[Pair], float]:
    """Kept pictures, each with a difference map on one scale for all."""
    opened = [
        (shown, *(_open(path) for path in pair_files(folder, shown.number)))
        for shown in figures.pictures
    ]
    found = [(shown, a, b) for shown, a, b in opened if a and b and a.size == b.size]
    largest = [
        np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max(-1).ravel()
        for _, a, b in found
    ]
    full = float(np.quantile(np.concatenate(largest), 0.998)) if largest else 0.0
    full = max(_LEAST_DIFFERENCE, full)
    return [
        Pair(shown, data_url(a), data_url(b), data_url(difference(a, b, full)), pixelated(a))
        for shown, a, b in found
    ], full


def _open(path: Path) -> Image.Image | None:
    """A kept picture, or None if it is gone. Raises SlimdiffError if it is no picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SlimdiffError(
            f"'{path}' is not a PNG picture ({error}). Run slimdiff compare again."
        ) from None


def _asset(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _duration(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"


def _short(value: float) -> str:
    """A small figure as people write it: 1.4e-05 as 1.4 x 10^-5 with real superscripts."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}\u2009×\u200910{raised}"
