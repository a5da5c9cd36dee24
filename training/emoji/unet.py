"""Train the denoiser and the text encoder on the latents; stop and continue at will.

A latent x is mixed with Gaussian noise e at a time t as  a x + s e  (a^2 + s^2 = 1); from the
mixture, t and the caption c the network predicts the velocity  v = a e - s x.  The loss is

    w(t) |v_hat - v|^2,   w(t) = min(1, 5 s^2 / a^2),

which counts nearly clean mixtures less: what is left to learn there is mostly noise. Times are
spread evenly over each batch. One caption in ten is empty, for guidance.

The learning rate stays constant, since nobody knows when training ends: what ships is a moving
average of the weights, over the last tenth of training. `--cooldown M` lets the rate fall to zero
over M minutes, in a copy of the checkpoint (WORK/unet-cooldown.pt), so the main run can go on.

Every few minutes, and on SIGTERM, everything is saved to WORK/unet.pt, from where the next call
continues. Sample grids go to WORK/samples.

    python -m training.emoji.unet [--minutes M] [--cooldown M] [--init PIPELINE] [--work FOLDER]
"""

from __future__ import annotations

import shutil
from pathlib import Path

from training.emoji.common import base_parser, prepare
from training.emoji.trainer import Trainer


def main(argv: list[str] | None = None) -> None:
    """Train from a checkpoint, from a pipeline's weights, or from nothing."""
    parser = base_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=24 * 60, help="length of this run")
    parser.add_argument(
        "--cooldown", type=float, default=0, help="minutes for the rate to fall to 0"
    )
    parser.add_argument("--init", type=Path, help="without a checkpoint: start from this pipeline")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--adamw", action="store_true", help="AdamW for all weights, no Muon")
    parser.add_argument("--compile", action="store_true", help="pays on a GPU only")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--sample-every", type=float, default=20, help="minutes")
    parser.add_argument("--report", type=int, default=25, help="steps between progress lines")
    args = parser.parse_args(argv)
    if args.smoke:
        args.batch = 4
    device = prepare(args)
    main_run, cooldown = args.work / "unet.pt", args.work / "unet-cooldown.pt"
    if args.cooldown:
        if not main_run.exists():
            raise SystemExit(f"{main_run} is missing: there is nothing to cool down")
        shutil.copyfile(main_run, cooldown)
    checkpoint = cooldown if args.cooldown else main_run
    trainer = Trainer(args, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"continuing {checkpoint} from step {trainer.progress.step}")
    trainer.run(checkpoint)


if __name__ == "__main__":
    main()
