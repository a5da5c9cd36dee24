"""Several processes at one calibration, one replica of the pipeline each.

Started by ``torchrun`` or ``accelerate launch``; they talk by gloo, on the CPU, and only once the
sampling is done: sums are added up, then each process decomposes and prices its share of the sites
and all get all. What is exchanged is tensors in the safetensors format; nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["Team", "joined"]

Item = TypeVar("Item")

_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Team:
    """This process's ``rank`` among ``size``; alone it does everything and exchanges nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Team:
        """The team of this process, of one if no process group was set up."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process writes what all found."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's items: every ``size``-th; together all of them, none twice."""
        return items[self.rank :: self.size]

    def add_up_(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace every sum by its total over the team, in place."""
        if self.size == 1:
            return
        for site in sorted(sums):
            for name in sorted(sums[site]):
                total = sums[site][name].cpu()
                dist.all_reduce(total)
                sums[site][name].copy_(total)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes together; names must differ between them."""
        if self.size == 1:
            return dict(tensors)
        found: dict[str, Tensor] = {}
        own = bytearray(save({k: v.cpu().contiguous() for k, v in tensors.items()}))
        for source in range(self.size):
            length = torch.tensor([len(own)])
            dist.broadcast(length, source)
            if source == self.rank:
                data = torch.frombuffer(own, dtype=torch.uint8)
            else:
                data = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, source)
            found |= load(data.numpy().tobytes())
        return found

    def wait(self) -> None:
        """Go on once all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Team]:
    """Join the team that the launcher's environment names, if any, while the block runs."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield Team.current()
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Team.current()
    finally:
        dist.destroy_process_group()
