"""Allocation from spectra and the residual stream alone: no denoiser run, no gains.

A site's cut to width r loses the share ``curve(r)`` of what the site says (its output energy; its
logit energy for query-key). Said on a residual stream, that is

    error(r) = curve(r) * E_out / (E_stream + E_out)

of the stream, and every block downstream reads the stream through a norm, so relative errors are
what travels. The budget is then spent as in :mod:`slimdiff.policies.measured`.

This is our reading of ARA, the automatic, propagation-aware rank allocation that SlimDiff names
(Roy et al., 2025, arXiv 2509.21498) and whose formula is not public: a best effort.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["stream_share"]


def stream_share(curve: Tensor, energy: Tensor, width: int) -> float:
    """Error that keeping ``width`` puts on the residual stream, relative to the stream's energy.

    ``curve``: share lost at widths 0..d, shape (d + 1,). ``energy``: sums of |output|^2, of
    |stream|^2 and of tokens, shape (3,). A site without a stream counts with its whole share.
    """
    output, stream = float(energy[0]), float(energy[1])
    if stream == 0:
        return float(curve[width])
    return float(curve[width]) * output / (output + stream)
