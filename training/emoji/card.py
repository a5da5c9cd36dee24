"""The model card: README.md of a pipeline folder, written from `training.json` and the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.emoji.models import shares

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# emoji: a small text-to-image pipeline

A `StableDiffusionPipeline` that draws emoji of 64 x 64 pixels in two artists' styles, made to try
slimdiff offline. Ask like its captions: `red apple, noto style emoji`, or
`blue heart, fluent style emoji`; {steps} steps, guidance {guidance:g}.

## Data

{training_drawings} drawings without skin-tone variants; {held_out_drawings} more, pairs of concept
and artist, are held out. Names and tags: emojibase-data 17.0.0 (MIT).

- Noto Emoji (Google), from emoji-datasource-google 16.0.0: Apache-2.0.
- Fluent Emoji (Microsoft), from @lobehub/fluent-emoji-3d 1.1.0: MIT.

## Networks and training

| | |
| --- | --- |
| Denoiser | {parameters:.1f} M parameters, {macs:.0f} M multiply-adds a step |
| Slimmable pool | {pool_parameters:.0%} of its parameters, {pool_macs:.0%} of its multiply-adds |
| Latents | 16 x 16 x 4; autoencoder {psnr:.1f} dB |
| Prediction | v, zero terminal SNR, trailing steps |
| Trained for | {pictures:,} pictures, {steps_done:,} steps, {hours:.1f} hours on {device} |

{autoencoder}

## How often a judge names the picture

`emoji-clip` ranks the names of all concepts for each picture; R@k is the share whose own name is
among the first k. *Real* are the artists' drawings of the same prompts. The judge never saw
generated pictures. Held-out drawings were not shown to the pipeline, but were to the judge.

| Prompts | Pictures | R@1 generated | R@1 real | R@5 generated | R@5 real |
| --- | --- | --- | --- | --- | --- |
{rows}

## Grid

![64 pictures](grid.png)

Prompts, row by row:

{prompts}
"""


def row(name: str, figures: dict[str, dict[str, float]]) -> str:
    """One line of the table."""
    generated, real = figures["generated"], figures["real"]
    cells = [f"{part.get(rank, 0):.0%}" for rank in ("R@1", "R@5") for part in (generated, real)]
    return f"| {name} | {generated['pictures']} | {' | '.join(cells)} |"


def write_card(folder: Path, result: dict[str, Any]) -> None:
    """Write the card into the pipeline folder."""
    facts = json.loads((folder / "training.json").read_text())
    counted = shares()
    autoencoder = facts["autoencoder"]
    (folder / "README.md").write_text(
        CARD.format(
            **{key: facts[key] for key in ("training_drawings", "held_out_drawings")},
            steps=result["steps"],
            guidance=result["guidance"],
            parameters=counted["denoiser_parameters"] / 1e6,
            macs=counted["denoiser_macs"] / 1e6,
            pool_parameters=counted["pool_share_of_parameters"],
            pool_macs=counted["pool_share_of_macs"],
            psnr=autoencoder["psnr"],
            pictures=facts["pictures"],
            steps_done=facts["step"],
            hours=facts["hours"],
            device=facts["device"],
            autoencoder=autoencoder["note"],
            rows="\n".join(
                [row("seen", result["seen"]), row("held-out pairs", result["held_out"])]
            ),
            prompts="\n".join(f"{i + 1}. {text}" for i, text in enumerate(result["grid"])),
        ),
        encoding="utf-8",
    )
