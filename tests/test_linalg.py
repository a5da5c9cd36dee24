"""Moments, damping, roots and factors against their textbook definitions."""

from __future__ import annotations

import pytest
import torch
from helpers import augmented, gram, normal, samples, seeds
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


@given(seeds, widths, st.integers(-6, 6))
def test_roots_of_full_rank_moments_are_roots_and_inverses(seed, width, exponent):
    c = torch.cov(samples(seed, width + 20, width).mT).reshape(1, width, width) * 10.0**exponent
    root, inverse = roots(c, 0.0)
    torch.testing.assert_close(root @ root, c, rtol=0, atol=1e-12 * float(c.abs().max()))
    torch.testing.assert_close(
        (inverse @ c @ inverse)[0], torch.eye(width).double(), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(root, root.mT)
    assert torch.linalg.eigvalsh(root).min() >= 0


@given(seeds, st.integers(2, 9), st.sampled_from([1e-7, 1e-2]), st.integers(-6, 6), st.data())
def test_a_floor_lifts_only_the_eigenvalues_below_it(seed, width, floor, exponent, data):
    rank = data.draw(st.integers(1, width), label="rank")
    c = gram(normal(seed, 30, rank) @ normal(seed + 1, rank, width)) * 10.0**exponent
    values, vectors = torch.linalg.eigh(c)
    expected = vectors @ torch.diag(values.clamp_min(floor * float(values[-1]))) @ vectors.mT
    root, inverse = roots(c[None], floor)
    scale = float(c.abs().max())
    torch.testing.assert_close(root[0] @ root[0], expected, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close((inverse @ root)[0], torch.eye(width).double(), rtol=0, atol=1e-6)


def test_the_floor_follows_each_matrix_and_zeros_count_as_the_identity():
    c = torch.stack([torch.diag(torch.tensor(d)) for d in ([4.0, 0], [400.0, 0], [0.0, 0])])
    root, _ = roots(c.double(), 0.25)
    expected = torch.tensor([[2.0, 1], [20.0, 10], [1.0, 1]]).double()
    torch.testing.assert_close(root.diagonal(dim1=1, dim2=2), expected)


@given(seeds, widths, st.data())
def test_roots_without_floor_are_pseudo_inverses(seed, width, data):
    rank = data.draw(st.integers(1, width), label="rank")
    x = normal(seed, width + 20, rank) @ normal(seed + 1, rank, width)
    root, inverse = roots(gram(x)[None], 0.0)
    scale = 1e-6 * max(1.0, float(root.abs().max()))
    torch.testing.assert_close(root @ inverse @ root, root, rtol=0, atol=scale)
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
