"""``python -m benchmarks.figures STATS``: draws the figures and says what they are of."""

from __future__ import annotations

import argparse
from pathlib import Path

from slimdiff import Statistics
from slimdiff.files import write_text

from .drawing import draw_all


def main(argv: list[str] | None = None) -> None:
    """Draw the figures of docs/how.md from the statistics of a calibration."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=main.__doc__)
    parser.add_argument("stats", type=Path, help="folder of slimdiff calibrate")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures"))
    args = parser.parse_args(argv)
    stats = Statistics.load(args.stats)
    for path in draw_all(stats, args.output):
        print(path)
    write_text(args.output / "provenance.md", provenance(stats))


def provenance(stats: Statistics) -> str:
    """Model, sampling, seed and versions in one line."""
    h, s = stats.header, stats.header.sampling
    used = ", ".join(f"{name} {h.versions[name]}" for name in ("torch", "diffusers"))
    prompts = len(h.prompts) + len(h.gain_prompts)
    return (
        f"Pipeline `{h.source.name}` (denoiser {h.source.hash[:8]}), {prompts} prompts, {s.steps} "
        f"steps, guidance {s.guidance:g}, seed {s.seed}; {used}; drawn by "
        "`python -m benchmarks.figures`.\n"
    )


if __name__ == "__main__":
    main()
