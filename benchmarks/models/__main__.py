"""``python -m benchmarks.models``: writes docs/models.md. No weights, no network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slimdiff.files import write_text

from .figures import Figures, figures
from .published import PUBLISHED

_HEAD = """\
# The models people run

Counted by `python -m benchmarks.models` from the published configurations, built without weights.
One call of the denoiser, one sample, at the size in the second column. *Pool*: weights and biases
that may be cut. *Locked*: query-key projections that must stay whole. *At pool 0.6*: every site at
the largest common share of its width, in multiples of 8, that keeps at most 60 % of the pool.
*Least*: what is left with every site cut to width 8. *Moments*: memory of the float64 sums of a
calibration, and of the largest single site.

"""

_COLUMNS = (
    "model",
    "draws",
    "sites",
    "parameters (M)",
    "pool (M)",
    "locked (M)",
    "GMAC",
    "at pool 0.6: parameters (M)",
    "GMAC",
    "least (M)",
    "moments (GiB)",
)

_FOOT = """
## What is cut, and what is not

| class | query-key | value-output | feed-forward |
|---|---|---|---|
| `UNet2DConditionModel` (SD 1, 2, SDXL; Turbo, LCM, inpainting) | yes | yes | yes |
| `PixArtTransformer2DModel`, `DiTTransformer2DModel` | yes | yes | yes |
| `SD3Transformer2DModel`, SD3 | yes, one basis a head for both streams | yes | yes, both streams |
| `SD3Transformer2DModel`, SD3.5 | locked: normalised | yes, also of the second attention | yes |
| `FluxTransformer2DModel` | locked: normalised, rotated | yes | yes |
| `WanTransformer3DModel` | locked: normalised, rotated | yes | yes |

Queries and keys that are normalised or rotated after their projection have no closed form: a
change of basis does not commute with either. In these models query-key widths stay, so attention
scores cost what they did, and the columns above say what that leaves. U-Nets whose attention has
added key and value projections (Kandinsky, DeepFloyd) are locked by name; a denoiser with nothing
to cut is refused. Of Wan 2.2's two transformers the first is cut.

DiT draws classes: prompt files hold class numbers or names, one a line, and without `--prompts`
all of its classes are the pool. Video pipelines take `--num-frames`; pictures in reports are the
middle frame.
"""


def main(argv: list[str] | None = None) -> None:
    """Count every published model and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"))
    parser.add_argument("--only", nargs="*", default=list(PUBLISHED), metavar="MODEL")
    args = parser.parse_args(argv)
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for name in args.only:
        lines.append(row(name, PUBLISHED[name].draws, figures(PUBLISHED[name])))
        print(lines[-1], flush=True)
    write_text(args.output, _HEAD + "\n".join(lines) + "\n" + _FOOT)


def row(name: str, draws: str, f: Figures) -> str:
    """One line of the table."""
    cells = [
        name,
        draws,
        f"{f.free}, {f.kept_whole} locked" if f.kept_whole else f"{f.free}",
        f"{f.parameters / 1e6:,.1f}",
        f"{f.pool / 1e6:,.1f} ({f.pool / f.parameters:.0%})",
        f"{f.locked / 1e6:,.1f}",
        f"{f.macs / 1e9:,.0f}",
        f"{f.slim_parameters / 1e6:,.1f} ({f.slim_parameters / f.parameters:.0%})",
        f"{f.slim_macs / 1e9:,.0f} ({f.slim_macs / f.macs:.0%})",
        f"{f.least / 1e6:,.1f} ({f.least / f.parameters:.0%})",
        f"{f.moments / 1024:.1f}, {f.widest / 1024:.2f}",
    ]
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
