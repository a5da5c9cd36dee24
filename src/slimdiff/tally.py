"""What a recording adds up while the denoiser runs, settled at the end of every call.

Reading a number from a GPU waits for it. So hooks only leave tensors here, and one look at the
end of a call tells whether all was finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import SlimdiffError
from .gram import Moment, mirror_

__all__ = ["Tally", "wide"]


class Tally:
    """Moments and energies on their way into the ``sums`` of all sites.

    ``timestep`` is that of the running call.
    """

    def __init__(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.timestep = 0.0
        self._sums = sums
        self._moments: dict[tuple[str, str], Moment] = {}  # in the order of execution
        self._energies = {site: [0.0, 0.0, 0.0] for site in sums}
        self._norms: list[tuple[str, int, float, Tensor]] = []
        self._largest: list[tuple[str, Tensor]] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def begin(self, timestep: float) -> None:
        """A call begins; what one that failed left behind is forgotten."""
        self.timestep, self._last = timestep, None
        self._norms.clear()

    def add(self, site: str, name: str, rows: Tensor, scale: float) -> None:
        """Count ``rows``, shape (n, features), ``scale`` times in the sum ``name`` of ``site``."""
        key = site, name
        if key not in self._moments:
            self._moments[key] = Moment(self._sums[site][name])
        if self._moments[key].add(rows, scale):
            self._look_at(site, self._moments[key])

    def add_energy(self, site: str, place: int, x: Tensor, weight: float) -> None:
        """Count ``|x|^2`` at one place of the site's energies."""
        # The two sites of an attention ask for the norm of one tensor, one after the other.
        if self._last is None or self._last[0] is not x:
            self._last = x, torch.linalg.vector_norm(wide(x))
        self._norms.append((site, place, weight, self._last[1]))

    def add_tokens(self, site: str, count: float) -> None:
        """Count tokens of the site's output."""
        self._energies[site][2] += count

    def settle(self, finite: bool) -> None:
        """A call is over, whose output was ``finite`` or not.

        Raises SlimdiffError naming the first site that met what is not.
        """
        norms = _numbers([norm for *_, norm in self._norms])
        for (site, place, weight, _), norm in zip(self._norms, norms, strict=True):
            self._energies[site][place] += weight * norm**2
        self._last = None
        self._norms.clear()
        if not (finite and all(map(math.isfinite, norms))):
            self._flush()
        self._check()

    def complete(self) -> None:
        """Bring everything so far into the sums. Raises as :meth:`settle` does."""
        self._flush()
        self._check()
        for site, energies in self._energies.items():
            total = self._sums[site]["energy"]
            total += torch.tensor(energies, dtype=total.dtype, device=total.device)
            energies[:] = [0.0, 0.0, 0.0]
        for moment in self._moments.values():
            if moment.total.dim() == 2:
                mirror_(moment.total)

    def _flush(self) -> None:
        for (site, _), moment in self._moments.items():
            if moment.flush():
                self._look_at(site, moment)

    def _look_at(self, site: str, moment: Moment) -> None:
        # An entry of a Gram is no larger than those of the diagonal that it lies between.
        self._largest.append((site, moment.total.diagonal(dim1=-2, dim2=-1).amax()))

    def _check(self) -> None:
        values = _numbers([largest for _, largest in self._largest])
        sites = [site for site, _ in self._largest]
        self._largest.clear()
        bad = {s for s, value in zip(sites, values, strict=True) if not math.isfinite(value)}
        for site, _ in self._moments:
            if site in bad:
                raise SlimdiffError(
                    f"Site '{site}' met NaN or infinity by timestep {self.timestep:g}; "
                    "expected finite activations. Try --dtype float32 or bfloat16."
                )


def wide(x: Tensor) -> Tensor:
    """``x`` without its graph, at least float32."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _numbers(found: Sequence[Tensor]) -> list[float]:
    """Tensors of one number as floats, all in one wait."""
    return torch.stack([t.to(found[0].device) for t in found]).tolist() if found else []
