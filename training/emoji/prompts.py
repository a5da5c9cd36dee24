"""Choose the prompts that ship with the pipeline: `emoji-prompts.txt`, one prompt a line.

The pool has to be fair in every part, because callers calibrate on a prefix and judge on the
last lines. So each prompt names another concept where there are enough of them, artists take
turns, and the order is one seeded shuffle: any prefix is a sample of the whole. A share of the
prompts carries tags, and a share asks for held-out pairs, never seen in training.

    python -m training.emoji.prompts --out FILE [--work FOLDER]
"""

from __future__ import annotations

import random
from pathlib import Path

from training.emoji.common import ARTISTS, Drawing, base_parser, caption, load_drawings

WITH_TAGS = 0.15
HELD_OUT = 0.05


def choose(drawings: list[Drawing], count: int, seed: int) -> list[str]:
    """`count` different prompts in a seeded order."""
    rng = random.Random(seed)
    pairs = {(d.code, d.artist): d for d in drawings}
    held_out = [d for d in drawings if d.held_out]
    chosen = rng.sample(held_out, min(len(held_out), round(HELD_OUT * count)))
    seen = {d.code for d in drawings} - {d.code for d in chosen}
    codes = rng.sample(sorted(seen), len(seen))
    turn = 0
    while len(chosen) < count and codes:
        code = codes.pop()
        artists = [a for a in ARTISTS if (code, a) in pairs and not pairs[code, a].held_out]
        artist = ARTISTS[turn % len(ARTISTS)]
        if artist in artists:
            chosen.append(pairs[code, artist])
            turn += 1
    if len(chosen) < count:
        raise SystemExit(f"only {len(chosen)} of {count} prompts: too few drawings")
    rng.shuffle(chosen)
    prompts = []
    for drawing in chosen:
        tags = drawing.tags if rng.random() < WITH_TAGS else []
        tags = rng.sample(tags, min(len(tags), 2))
        prompts.append(caption(drawing.label, drawing.artist, tags))
    return prompts


def main(argv: list[str] | None = None) -> None:
    """Write the prompt file."""
    parser = base_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the text file to write")
    parser.add_argument("--count", type=int, default=640)
    args = parser.parse_args(argv)
    count = min(args.count, 8) if args.smoke else args.count
    prompts = choose(load_drawings(args.work), count, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    print(f"{len(prompts)} prompts in {args.out}")


if __name__ == "__main__":
    main()
