"""What may shrink, as data: names and sizes, never modules or tensors.

A *site* is one functional group whose inner width can be cut without changing what it reads or
writes on the residual stream:

- ``qk``: the query-key inner product of an attention, width ``d`` per head;
- ``vo``: its value-output path, width ``d`` per head;
- ``ffn``: the hidden channels of a feed-forward, width ``F``.

A *part* is the slab of one Linear that belongs to a site: output rows for what writes the inner
width (query, key, value, up, gate), input columns for what reads it (output, down). Joint
streams give several parts of one role; packed Linears give several parts of one Linear. Sites that
share a Linear are listed last slab first, so that cutting them in order moves no slab to come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import SlimdiffError

Kind = Literal["qk", "vo", "ffn"]
Role = Literal["query", "key", "value", "output", "up", "gate", "down"]

READERS: frozenset[str] = frozenset({"output", "down"})


@dataclass(frozen=True)
class Part:
    """A slab of one Linear: ``size`` rows (or columns, for readers) from ``start`` on.

    ``across`` is the other side of the slab: input features for rows, output features for
    columns. ``bias`` tells whether the Linear has one. Where several Linears read the same inner
    width, each from a stream of its own, ``reader`` numbers them.
    """

    role: Role
    linear: str
    start: int
    size: int
    across: int
    bias: bool
    reader: int = 0

    @property
    def reads(self) -> bool:
        """Whether the slab is made of input columns."""
        return self.role in READERS

    @property
    def per_channel(self) -> int:
        """Parameters that one unit of inner width costs in this slab."""
        return self.across + (self.bias and not self.reads)


@dataclass(frozen=True)
class Site:
    """One group of widths that shrink together.

    ``module`` is the dotted name of the attention or feed-forward; ``stream`` that of the module
    whose input is the residual stream which the output is added to ("" if there is none).
    ``width`` is per head; ``heads`` is 1 for a feed-forward. ``locked`` is the reason why the
    site must stay whole, or None.
    """

    name: str
    kind: Kind
    module: str
    stream: str
    heads: int
    width: int
    parts: tuple[Part, ...]
    locked: str | None = None

    def role(self, role: Role) -> tuple[Part, ...]:
        """The parts that play ``role``, one a stream."""
        return tuple(part for part in self.parts if part.role == role)

    def parameters(self, width: int | None = None) -> int:
        """Parameters at ``width`` per head (the full width by default), without reader biases."""
        width = self.width if width is None else width
        return self.heads * width * sum(part.per_channel for part in self.parts)


def free_sites(sites: Iterable[Site]) -> list[Site]:
    """The sites that may shrink."""
    return [site for site in sites if site.locked is None]


def reader_biases(sites: Iterable[Site]) -> int:
    """Bias parameters of the output and down projections: in the pool, but they never shrink."""
    found = {p.linear: p.across for s in sites for p in s.parts if p.reads and p.bias}
    return sum(found.values())


def refuse_locked(sites: Sequence[Site]) -> None:
    """Raise SlimdiffError, with the reasons, if no site may shrink."""
    if not free_sites(sites):
        reasons = "; ".join(dict.fromkeys(site.locked or "" for site in sites))
        raise SlimdiffError(
            f"Nothing can be cut: all {len(sites)} sites of this denoiser are locked ({reasons}). "
            "Slim another model; what is supported is listed in docs/models.md."
        )


def pool_parameters(sites: Iterable[Site]) -> int:
    """Weights and biases of all Linears of the unlocked sites."""
    free = free_sites(sites)
    return sum(site.parameters() for site in free) + reader_biases(free)
