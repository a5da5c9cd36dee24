"""The results for people: ``table.md`` and ``error.png``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .cells import Results, values
from .settings import OURS, Settings

__all__ = ["Findings", "markdown", "plot_errors"]

Findings = dict[str, Any]
"""What ``python -m benchmarks.methods`` found, by the names of the tables, and ``provenance``."""

_OURS = " ".join(OURS)


def markdown(found: Findings, settings: Settings) -> str:
    """All tables, each under what was measured."""
    origin = found["provenance"]
    sections = [
        "# Methods compared",
        "",
        f"Embedded pipeline `{origin['model']}`, {origin['parameters']:,} parameters in the "
        f"denoiser, {origin['pool']:,} of them slimmable. {settings.calibration} calibration and "
        f"{settings.held_out} held-out prompts, {settings.steps} steps, guidance "
        f"{settings.guidance:g}, {len(settings.seeds)} seed(s); widths in multiples of "
        f"{settings.multiple}, ours {settings.our_multiple}. {origin['device']}, torch "
        f"{origin['versions']['torch']}.",
        "",
        "Cells are the mean over seeds (least to greatest) and the ratio of the mean to ours "
        f"(`{_OURS}`) at the same pool.",
        *_error_table("Relative squared error of the denoiser's output", found, settings),
        *_error_table(
            "Relative squared error of the final latents", found, settings, "latent_rel_mse"
        ),
        *_kept_table(found["cells"], settings),
        *_predicted(found["cells"], settings),
        *_equal_ranks(found, settings),
        *_kinds(found["kinds"], settings),
        *_ablation(found["ablation"], settings),
        *_pictures(found["pictures"], settings),
        *_robustness(found["robustness"], settings),
    ]
    return "\n".join(sections) + "\n"


def plot_errors(results: Results, settings: Settings, path: Path) -> None:
    """Error against pool kept, a line a method, bars from the least to the greatest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    styles = {"uniform": "--", "ara": ":", "measured": "-"}
    colours: dict[str, str] = {}
    for row in _rows(results):
        method, policy = row.split(" ")
        colour = colours.setdefault(method, f"C{len(colours)}")
        found = [values(results, row, pool, "noise_rel_mse") for pool in settings.pools]
        kept = [fmean(values(results, row, pool, "pool_kept")) for pool in settings.pools]
        mean = [fmean(f) for f in found]
        spread = [
            [m - min(f) for m, f in zip(mean, found, strict=True)],
            [max(f) - m for m, f in zip(mean, found, strict=True)],
        ]
        style = styles[policy]
        axes.errorbar(
            kept, mean, yerr=spread, fmt=f"{style}o", color=colour, label=row, capsize=3, ms=4
        )
    axes.set(
        yscale="log",
        xlim=(min(settings.pools) - 0.05, max(settings.pools) + 0.05),
        xlabel="share of the slimmable parameters kept",
        ylabel="relative squared error of the denoiser's output",
        title="Error against parameters kept, embedded emoji pipeline, held-out prompts",
    )
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _error_table(
    title: str, found: Findings, settings: Settings, name: str = "noise_rel_mse"
) -> list[str]:
    results: Results = found["cells"]
    ours = {pool: fmean(values(results, _OURS, pool, name)) for pool in settings.pools}
    lines = []
    for row in _rows(results):
        cells = []
        for pool in settings.pools:
            seeds = values(results, row, pool, name)
            cells.append(f"{_spread(seeds)} {_ratio(fmean(seeds), ours[pool])}")
        lines.append([row, *cells])
    return _table(title, ["method", *(f"pool {p:g}" for p in settings.pools)], lines)


def _kept_table(results: Results, settings: Settings) -> list[str]:
    lines = []
    for row in _rows(results):
        kept = [values(results, row, pool, "pool_kept") for pool in settings.pools]
        lines.append([row, *(f"{fmean(k):.2%}" for k in kept)])
    header = ["method", *(f"asked {p:.0%}" for p in settings.pools)]
    return _table("Share of the pool kept", header, lines)


def _predicted(results: Results, settings: Settings) -> list[str]:
    lines = []
    for pool in settings.pools:
        predicted = values(results, _OURS, pool, "predicted")
        achieved = values(results, _OURS, pool, "noise_rel_mse")
        ratios = [a / p for p, a in zip(predicted, achieved, strict=True)]
        spread = f"{fmean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append([f"{pool:g}", _spread(predicted), _spread(achieved), spread])
    header = ["pool", "predicted", "achieved on held-out prompts", "achieved / predicted"]
    return _table("What our plans foretell", header, lines)


def _equal_ranks(found: Findings, settings: Settings) -> list[str]:
    results: Results = found["cells"] | found["equal_ranks"]
    row = f"paper {OURS[1]} of {OURS[0]}"
    lines = []
    for pool in settings.pools:
        ours, theirs = (values(results, r, pool, "noise_rel_mse") for r in (_OURS, row))
        ratio = _ratio(fmean(theirs), fmean(ours))
        lines.append([f"{pool:g}", _spread(ours), _spread(theirs), ratio])
    header = ["pool", "our forms", "the paper's forms", "ratio"]
    return _table("Equal ranks: both at the widths that ours chose", header, lines)


def _kinds(steps: Sequence[dict[str, Any]], settings: Settings) -> list[str]:
    lines, paper = [], None
    for label, errors in _by_step(steps):
        paper = paper or fmean(errors)
        lines.append([label, _spread(errors), _ratio(fmean(errors), paper)])
    title = (
        f"Equal ranks, kind by kind: at the widths that ours chose, pool {settings.detail_pool:g}"
    )
    return _table(
        title, ["closed forms", "error of the denoiser's output", "to the paper's"], lines
    )


def _ablation(steps: Sequence[dict[str, Any]], settings: Settings) -> list[str]:
    lines, before = [], None
    for label, errors in _by_step(steps):
        change = "" if before is None else _ratio(before, fmean(errors))
        lines.append([label, _spread(errors), change])
        before = fmean(errors)
    title = f"From the paper's method ({steps[0]['policy']} ranks) to ours, pool "
    header = ["step", "error of the denoiser's output", "less by"]
    return _table(f"{title}{settings.detail_pool:g}", header, lines)


def _by_step(steps: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    for step in steps:
        yield step["label"], [result["noise_rel_mse"] for result in step["cells"].values()]


def _pictures(pools: dict[str, dict[str, Any]], settings: Settings) -> list[str]:
    lines = []
    for pool, methods in pools.items():
        for label, s in methods.items():
            reference = label == "dense"
            lines.append(
                [
                    pool,
                    label,
                    *("-" if reference else f"{s[k]:{f}}" for k, f in _LIKENESS.items()),
                    f"{s['clip']:.2f}",
                    f"{s['r_at_1']:.1%}",
                    "-" if reference else _interval(s["r_at_1_to_dense"]),
                    "not computed",
                ]
            )
    header = ["pool", "method", "PSNR (dB)", "SSIM", "KID", "CLIP score", "R@1"]
    header += ["R@1 to dense (95 %)", "LPIPS"]
    title = f"Pictures of {settings.pictures} prompts; PSNR, SSIM and KID against dense"
    return _table(title, header, lines)


_LIKENESS = {"psnr_db": ".1f", "ssim": ".3f", "kid": ".4f"}


def _robustness(results: dict[str, dict[str, float]], settings: Settings) -> list[str]:
    title = f"Drawn otherwise than calibrated: `{_OURS}`, pool {settings.detail_pool:g}, one seed"
    lines = [
        [name, f"{r['noise_rel_mse']:.2e}", f"{r['latent_rel_mse']:.2e}"]
        for name, r in results.items()
    ]
    return _table(title, ["drawn with", "error of the output", "error of the latents"], lines)


def _rows(results: Results) -> list[str]:
    return list(dict.fromkeys(result["row"] for result in results.values()))


def _spread(seeds: Sequence[float]) -> str:
    mean = f"{fmean(seeds):.2e}"
    return mean if len(seeds) == 1 else f"{mean} ({min(seeds):.2e} to {max(seeds):.2e})"


def _ratio(value: float, base: float) -> str:
    return f"x{value / base:.3g}"


def _interval(found: dict[str, float] | None) -> str:
    if found is None:
        return "no dense hit"
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _table(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = "|" + "---|" * len(header)
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return ["", f"## {title}", "", "| " + " | ".join(header) + " |", rule, *body]
