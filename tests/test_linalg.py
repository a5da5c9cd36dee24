"""Moments, damping, roots and factors against their textbook definitions."""

from __future__ import annotations

import pytest
import torch
from helpers import augmented, normal, samples, seeds
from hypothesis import given
from hypothesis import strategies as st

from slimdiff.linalg import centre, cholesky, damped, roots

widths = st.integers(1, 9)


@given(seeds, widths, st.integers(1, 30))
def test_centre_is_mean_and_covariance(seed, width, count):
    x = samples(seed, count, width)
    mean, c = centre(augmented(x))
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-12, atol=1e-12)
    expected = torch.cov(x.mT, correction=0).reshape(width, width)
    torch.testing.assert_close(c, expected, rtol=1e-10, atol=1e-10)


def test_centre_of_nothing_is_zero():
    mean, c = centre(torch.zeros(4, 4, dtype=torch.float64))
    assert not mean.any()
    assert not c.any()


def test_damping_is_relative_to_the_mean_diagonal_of_each_matrix():
    c = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), 100 * torch.eye(2)]).double()
    added = damped(c, 0.5) - c
    torch.testing.assert_close(
        added, torch.stack([1.0 * torch.eye(2), 50 * torch.eye(2)]).double()
    )


def test_a_moment_of_zeros_is_damped_to_the_identity():
    c = torch.zeros(1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(damped(c, 1e-9)[0], torch.eye(3, dtype=torch.float64))


@given(seeds, widths, st.sampled_from([0.0, 1e-10, 1e-2]), st.integers(-6, 6))
def test_roots_of_full_rank_moments_are_roots_and_inverses(seed, width, damping, exponent):
    c = torch.cov(samples(seed, width + 20, width).mT).reshape(1, width, width) * 10.0**exponent
    root, inverse = roots(c, damping)
    expected = damped(c, damping) if damping else c
    torch.testing.assert_close(root @ root, expected, rtol=1e-10, atol=1e-11 * 10.0**exponent)
    torch.testing.assert_close(
        (inverse @ expected @ inverse)[0], torch.eye(width).double(), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(root, root.mT)
    assert torch.linalg.eigvalsh(root).min() >= -1e-12 * root.abs().max()


@given(seeds, widths, st.data())
def test_undamped_roots_of_deficient_moments_are_pseudo_inverses(seed, width, data):
    rank = data.draw(st.integers(0, width))
    x = normal(seed, width + 20, rank) @ normal(seed + 1, rank, width)
    root, inverse = roots((x.mT @ x)[None], 0.0)
    scale = 1e-6 * max(1.0, float(root.abs().max()))
    torch.testing.assert_close(root @ inverse @ root, root, rtol=0, atol=scale)
    assert torch.isfinite(inverse).all()
    assert torch.linalg.matrix_rank(inverse[0]) == torch.linalg.matrix_rank(x)


def test_cholesky_of_a_positive_moment_is_torchs():
    c = torch.cov(samples(0, 30, 5).mT)
    torch.testing.assert_close(cholesky(c, 0.0), torch.linalg.cholesky(c), rtol=0, atol=0)


@given(seeds, st.integers(2, 9), st.data())
def test_cholesky_damps_deficient_moments_by_a_hair(seed, width, data):
    rank = data.draw(st.integers(0, width - 1))
    x = normal(seed, 30, rank) @ normal(seed + 1, rank, width)
    c = x.mT @ x
    factor = cholesky(c, 0.0)
    assert torch.isfinite(factor).all()
    if rank:
        torch.testing.assert_close(
            factor @ factor.mT, c, rtol=0, atol=1e-10 * float(c.abs().max())
        )


@given(seeds, widths, st.integers(-20, 0))
def test_cholesky_of_nothing_but_rounding_is_finite(seed, width, exponent):
    noise = normal(seed, width, width) * 10.0**exponent
    factor = cholesky(noise + noise.mT, 0.0)
    assert torch.isfinite(factor).all()
    assert (factor.diagonal() > 0).all()


def test_cholesky_refuses_a_moment_that_is_no_moment():
    with pytest.raises(ArithmeticError, match="size 3 is not positive"):
        cholesky(torch.full((3, 3), torch.nan, dtype=torch.float64), 0.0)
