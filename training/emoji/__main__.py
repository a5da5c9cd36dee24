"""Run the whole recipe, one step after the other, in one process.

    python -m training.emoji [--smoke] [--work FOLDER]

The pipeline ends up in WORK/emoji, the judge in WORK/emoji-clip, the prompts in
WORK/emoji-prompts.txt. Give the steps one by one to choose how long each may take.
"""

from __future__ import annotations

from training.emoji import (
    assemble,
    autoencoder,
    data,
    evaluate,
    judge,
    prompts,
    tokenizer,
    unet,
)
from training.emoji.common import base_parser


def main() -> None:
    """Every step with its defaults."""
    args = base_parser(__doc__).parse_args()
    shared = ["--work", str(args.work), "--threads", str(args.threads), "--seed", str(args.seed)]
    if args.smoke:
        shared.append("--smoke")
    pipeline = str(args.work / "emoji")
    for step, arguments in (
        (data, []),
        (prompts, ["--out", str(args.work / "emoji-prompts.txt")]),
        (tokenizer, []),
        (autoencoder, []),
        (judge, []),
        (unet, []),
        (assemble, ["--out", pipeline]),
        (evaluate, [pipeline]),
    ):
        print(f"# {step.__name__.rsplit('.', 1)[-1]}", flush=True)
        step.main([*arguments, *shared])


if __name__ == "__main__":
    main()
