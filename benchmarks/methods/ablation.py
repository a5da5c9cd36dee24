"""From the paper's method to ours, one step at a time, at one pool.

The steps in ``STEPS`` keep the widths that the paper's own policy chose, so that each shows a
closed form alone; then come measured ranks and rounds of error feedback. ``KINDS`` keep the
widths that ours chose and have our closed forms at one kind of site, the paper's at the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slimdiff.decomposition import EXACT, PAPER, Basis, Method, Moments, ffn, paper, vo

from .bench import Cell, Forms
from .settings import OURS, Settings

__all__ = ["FORMS", "KINDS", "STEPS", "ablation_cells", "kind_cells"]


@dataclass(frozen=True)
class Step:
    """What is added, and the forms of all kinds from then on."""

    method: str
    label: str
    forms: Forms


def paper_span(moments: Moments, readers: Tensor) -> Basis:
    """The paper's value directions, orthonormalised: ``value``, shape (H, d, d), for a refit.

    Once the output projection is refitted only the span of the leading directions matters, and QR
    keeps every such span.
    """
    basis = paper.vo_decompose(moments, readers)
    q, _ = torch.linalg.qr(basis.tensors["value"])
    return Basis({"value": q}, basis.errors)


_ORDERED = Method(ffn.decompose, paper.ffn_maps)
_REFITTED = Method(paper_span, vo.maps)

STEPS: tuple[Step, ...] = (
    Step("ablation-order", "+ elimination order", {**PAPER, "ffn": _ORDERED}),
    Step(
        "ablation-refit",
        "+ joint affine refit",
        {"qk": PAPER["qk"], "vo": _REFITTED, "ffn": EXACT["ffn"]},
    ),
    Step(
        "ablation-keys",
        "+ centred keys",
        {"qk": EXACT["qk"], "vo": _REFITTED, "ffn": EXACT["ffn"]},
    ),
    Step("ablation-moment", "+ own-moment value-output", EXACT),
)

KINDS: tuple[Step, ...] = tuple(
    Step(f"ours-{kind}", f"ours at {name} only", {**PAPER, kind: EXACT[kind]})
    for kind, name in (("qk", "query-key"), ("vo", "value-output"), ("ffn", "feed-forward"))
)

FORMS: dict[str, Forms] = {step.method: step.forms for step in STEPS + KINDS}


def ablation_cells(settings: Settings, policy: str) -> list[tuple[str, list[Cell]]]:
    """Label and cells of every step, from the paper under ``policy`` to ours."""
    pool, seeds, rounds = settings.detail_pool, settings.seeds, settings.rounds

    def cells(method: str, policy: str, ranks: str = "") -> list[Cell]:
        return [Cell(method, policy, pool, seed, ranks) for seed in seeds]

    return [
        ("paper", cells("paper", policy)),
        *((step.label, cells(step.method, policy, "paper")) for step in STEPS),
        (f"+ measured ranks, multiples of {settings.our_multiple} (ours)", cells(*OURS)),
        (f"+ rounds ({rounds})", [replace(cell, rounds=rounds) for cell in cells(*OURS)]),
    ]


def kind_cells(settings: Settings) -> list[tuple[str, list[Cell]]]:
    """Label and cells of the paper's forms at our widths, with ours at no, one and every kind."""
    method, policy = OURS
    pool, seeds = settings.detail_pool, settings.seeds
    return [
        ("the paper's forms", [Cell("paper", policy, pool, seed, method) for seed in seeds]),
        *(
            (step.label, [Cell(step.method, policy, pool, seed, method) for seed in seeds])
            for step in KINDS
        ),
        ("ours at all", [Cell(method, policy, pool, seed) for seed in seeds]),
    ]
