"""The affine refit against plain least squares on ``[y, 1]``."""

from __future__ import annotations

import pytest
import torch
from helpers import energy, normal, samples, seeds, with_one
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimdiff.decomposition.refit import prefix_errors, refit
from slimdiff.linalg import centre

widths = st.integers(1, 8)


def moment(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and centred moment of the rows of ``y``."""
    return centre(with_one(y).mT @ with_one(y))


def split(seed: int, width: int, kept: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    return order[:kept], order[kept:]


def least_squares_loss(y: Tensor, target: Tensor) -> float:
    """Least squared error of any affine map from ``y`` to ``target``; null directions allowed."""
    x = with_one(y)
    return energy(target - x @ (torch.linalg.pinv(x, rtol=1e-9) @ target))


@given(seeds, widths, st.integers(1, 5), st.data())
def test_undamped_refit_is_least_squares(seed, width, outputs, data):
    kept, dropped = split(seed, width, data.draw(st.integers(1, width), label="kept"))
    y = samples(seed, 40, width)
    weight, bias = normal(seed + 3, width, outputs), normal(seed + 4, outputs)
    transfer, row = refit(*moment(y), kept, dropped, damping=0.0)
    solution = torch.linalg.lstsq(with_one(y[:, kept]), y @ weight + bias).solution
    torch.testing.assert_close(transfer @ weight, solution[:-1], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bias + row @ weight, solution[-1], rtol=1e-7, atol=1e-7)


@given(seeds, st.integers(2, 8), st.data())
def test_refit_of_deficient_moments_is_finite_and_optimal_to_its_ridge(seed, width, data):
    rank = data.draw(st.integers(0, width - 1), label="rank")
    kept, dropped = split(seed, width, data.draw(st.integers(1, width - 1), label="kept"))
    y = samples(seed, 40, width, rank)
    mean, c = moment(y)
    transfer, row = refit(mean, c, kept, dropped, damping=1e-7)
    assert torch.isfinite(transfer).all()
    assert torch.isfinite(row).all()
    loss = energy(y[:, dropped] - (y[:, kept] @ transfer + row)[:, dropped])
    centred = y - y.mean(0)
    best = torch.linalg.pinv(centred[:, kept], rtol=1e-9) @ centred[:, dropped]
    ridge = 1e-7 * energy(centred[:, kept]) / len(kept) * energy(best)
    least = least_squares_loss(y[:, kept], y[:, dropped])
    assert loss <= least + ridge + 1e-9 * energy(y)


@given(seeds, widths, st.sampled_from([0.0, 1e-7, 10.0]))
def test_nothing_dropped_is_exactly_the_identity(seed, width, damping):
    kept, dropped = split(seed, width, width)
    transfer, row = refit(*moment(samples(seed, 3, width)), kept, dropped, damping)
    assert torch.equal(transfer, torch.eye(width).double()[kept])
    assert not row.any()


def test_damping_shrinks_the_deviation_not_the_kept_weights():
    kept, dropped = torch.tensor([0, 1]), torch.tensor([2])
    transfer, _ = refit(*moment(samples(0, 40, 3)), kept, dropped, damping=1e12)
    torch.testing.assert_close(transfer, torch.eye(3).double()[:2], rtol=0, atol=1e-9)


def test_a_dropped_constant_moves_into_the_bias():
    y = samples(0, 20, 3)
    y[:, 2] = 5.0
    transfer, row = refit(*moment(y), torch.tensor([0, 1]), torch.tensor([2]))
    torch.testing.assert_close(transfer[:, 2], torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(row, torch.tensor([0.0, 0.0, 5.0]).double())


@given(seeds, widths, st.integers(1, 5))
def test_prefix_errors_are_the_residuals_of_every_prefix(seed, width, outputs):
    y, weight = samples(seed, 40, width), normal(seed + 3, width, outputs)
    gained = prefix_errors(moment(y)[1], weight)
    for r in range(width + 1):
        residual = least_squares_loss(y[:, :r], y @ weight) / len(y)
        assert float(gained[r:].sum()) == pytest.approx(residual, rel=1e-7, abs=1e-10)
