"""Which denoisers can be slimmed. A family is one file of data that registers itself.

A family file names the model classes it serves and lists their :class:`slimdiff.sites.Site`.
Every module of this folder is imported here, so adding a file is enough.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..errors import SlimdiffError
from ..sites import Site

__all__ = ["Family", "Tiny", "families", "find", "register"]

Tiny = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class Family:
    """A kind of denoiser: its class names, its sites, and a tiny one to test with.

    ``tiny`` returns a randomly initialised small model and the keyword arguments of one call;
    ``variants`` do so for configurations of the same classes whose sites differ, by name.
    """

    name: str
    classes: tuple[str, ...]
    sites: Callable[[nn.Module], list[Site]]
    tiny: Tiny
    variants: Mapping[str, Tiny] = field(default_factory=dict)


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make ``family`` known under each of its class names."""
    for name in family.classes:
        _FAMILIES[name] = family
    return family


def families() -> list[Family]:
    """All families, each once, in the order of their names."""
    return sorted({f.name: f for f in _FAMILIES.values()}.values(), key=lambda f: f.name)


def find(model: nn.Module) -> Family:
    """The family of ``model``, by the name of its class or of a base class.

    Raises SlimdiffError for an unknown architecture, with what is supported.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in _FAMILIES:
            return _FAMILIES[cls.__name__]
    supported = ", ".join(sorted(_FAMILIES))
    raise SlimdiffError(
        f"Denoiser class {type(model).__name__} is not supported; supported: {supported}. "
        "To add it, write one file in slimdiff/families (see CONTRIBUTING.md)."
    )


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
