"""How small or fast: ceilings for the denoiser, said in the user's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .errors import SlimdiffError
from .prices import PriceList

__all__ = ["Amount", "Budget"]

Amount = float | int | str
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MISSING = {
    "macs": "the statistics hold no multiply-adds. Run slimdiff calibrate again",
    "latency": "no times were measured. Measure them with slimdiff.measure_latency(pipe, ...)",
}


@dataclass(frozen=True)
class Budget:
    """What may remain. Given together, all ceilings hold.

    ``params`` speaks of all the denoiser's parameters, ``pool`` of the slimmable ones (weights
    and biases of the Linears of unlocked sites), ``macs`` of the multiply-adds of one denoiser
    call for one prompt, ``bytes`` of the stored weights. Each is a share (0 < x <= 1, or
    ``"90%"``), a count (``759.5e6``, ``"759.5M"``, bytes also ``"1.6GB"``) or a reduction
    (negative: ``"-100M"``, ``"-10%"``). ``latency`` is a share of the dense denoiser's time a
    step, or a reduction in per cent.
    """

    params: Amount | None = None
    pool: Amount | None = None
    macs: Amount | None = None
    bytes: Amount | None = None
    latency: Amount | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            raise SlimdiffError(
                "Empty budget: give params (--params), pool (--pool), macs (--macs), bytes "
                "(--bytes) or latency (--latency), e.g. 0.9."
            )
        for name, amount in self.asked.items():
            _number(amount, name)

    @property
    def asked(self) -> dict[str, Amount]:
        """The amounts that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def ceilings(self, prices: Mapping[str, PriceList]) -> dict[str, float]:
        """Most that may remain, by name, in the unit of each price list.

        Raises SlimdiffError if what was asked for has no prices.
        """
        for name in self.asked:
            if name not in prices:
                raise SlimdiffError(f"Budget {self} cannot be planned: {_MISSING[name]}.")
        return {name: _kept(x, prices[name].total, name) for name, x in self.asked.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name}={amount}" for name, amount in self.asked.items())


def _kept(amount: Amount, whole: float, name: str) -> float:
    """What ``amount`` leaves of ``whole``; a hair more, so that 0.29 of 100 holds 29."""
    number = _number(amount, name)
    if number <= -1:
        return whole + round(number)
    if number > 1:
        return min(whole, round(number))
    return (number if number > 0 else 1 + number) * whole * (1 + 1e-12)


def _number(amount: Amount, name: str) -> float:
    """``amount`` as a share, a count or (negative) a reduction."""
    percent = False
    if isinstance(amount, str):
        units = _UNITS | _BYTES if name == "bytes" else _UNITS
        match = re.fullmatch(r"\s*(-?[0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*", amount.lower())
        try:
            number = float(match[1]) if match else None
        except ValueError:
            number = None
        if match is None or number is None or match[2] not in {*units, "%"}:
            raise SlimdiffError(
                f"Budget {name}={amount!r} is not an amount; expected a share like 0.9 or 90%, a "
                "count like 759.5M, or a reduction like -100M."
            )
        percent = match[2] == "%"
        number = number / 100 if percent else number * units[match[2]]
    else:
        number = float(amount)
    share = percent or name == "latency"
    over = share and not -1 < number <= 1
    if over or number == 0 or number != number or abs(number) == float("inf"):
        counts = "or a reduction like -25%" if name == "latency" else "a count, or a negative"
        counts += "" if name == "latency" else " number for a reduction"
        raise SlimdiffError(
            f"Budget {name}={amount!r} is out of range; expected a share above 0 and up to 1, "
            f"{counts}."
        )
    return number
