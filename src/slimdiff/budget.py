"""How small: a ceiling for the denoiser's parameters, said in the user's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .errors import SlimdiffError
from .sites import Site, pool_parameters

__all__ = ["Amount", "Budget"]

Amount = float | int | str
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@dataclass(frozen=True)
class Budget:
    """What may remain. Given together, all ceilings hold.

    ``params`` speaks of all the denoiser's parameters, ``pool`` of the slimmable ones (weights
    and biases of the Linears of unlocked sites). Each is a share (0 < x <= 1, or ``"90%"``), a
    count (``759.5e6``, ``"759.5M"``) or a reduction (negative: ``"-100M"``, ``"-10%"``).
    """

    params: Amount | None = None
    pool: Amount | None = None

    def __post_init__(self) -> None:
        if self.params is None and self.pool is None:
            raise SlimdiffError("Empty budget: give params (--params) or pool (--pool), e.g. 0.9.")
        for name, amount in asdict(self).items():
            if amount is not None:
                _kept(amount, 10**6, name)

    def ceiling(self, parameters: int, sites: Sequence[Site]) -> int:
        """Most parameters that a denoiser of ``parameters`` may keep."""
        pool = pool_parameters(sites)
        limits = [parameters]
        if self.params is not None:
            limits.append(_kept(self.params, parameters, "params"))
        if self.pool is not None:
            limits.append(parameters - pool + _kept(self.pool, pool, "pool"))
        return min(limits)

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in asdict(self).items() if v is not None)


def _kept(amount: Amount, whole: int, name: str) -> int:
    """What ``amount`` leaves of ``whole``."""
    number = _number(amount, name)
    if number <= -1:
        return whole + round(number)
    if number < 0:
        return int((1 + number) * whole + 1e-9)
    return int(number * whole + 1e-9) if number <= 1 else round(number)


def _number(amount: Amount, name: str) -> float:
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*(-?[0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgb%]?)\s*", amount.lower())
        try:
            number = float(match[1]) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise SlimdiffError(
                f"Budget {name}={amount!r} is not an amount; expected a share like 0.9 or 90%, a "
                "count like 759.5M, or a reduction like -100M."
            )
        number = number / 100 if match[2] == "%" else number * _UNITS[match[2]]
    else:
        number = float(amount)
    over = isinstance(amount, str) and "%" in amount and not -1 < number <= 1
    if over or number == 0 or number != number or abs(number) == float("inf"):
        raise SlimdiffError(
            f"Budget {name}={amount!r} is out of range; expected a share above 0 and up to 1, a "
            "count, or a negative number for a reduction."
        )
    return number
