"""The optimizers: Muon for the matrices inside the transformers, AdamW for everything else.

Muon replaces the momentum M of a matrix by its nearest orthogonal matrix (U V' of M = U S V'),
scaled to the size of an AdamW update, so one learning rate serves both.
"""

from __future__ import annotations

import torch
from torch import nn

WEIGHT_DECAY = 0.01


def split_optimizers(
    network: nn.Module, rate: float, muon: bool = True
) -> list[torch.optim.Optimizer]:
    """The optimizers of all parameters of `network`."""
    matrices, others = [], []
    for name, parameter in network.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name
        (matrices if inner and muon else others).append(parameter)
    adamw = torch.optim.AdamW(
        others, rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True
    )
    if not matrices:
        return [adamw]
    return [
        adamw,
        torch.optim.Muon(
            matrices, rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        ),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Use this learning rate from now on."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
