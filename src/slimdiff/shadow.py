"""One model answers the calls of another: the slim denoiser on the dense pipeline's latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .denoiser import output_of

__all__ = ["shadowing"]


@contextmanager
def shadowing(
    leader: nn.Module, follower: nn.Module, visit: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """After every call of ``leader`` in the block call ``follower`` with the same arguments.

    ``visit`` gets the follower's output, then the leader's.
    """
    follower.eval()

    def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        visit(output_of(follower(*args, **kwargs)), output_of(out))

    handle = leader.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
