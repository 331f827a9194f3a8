"""Positive numbers: the matrices of size 1, and numbers on a logarithmic scale."""

from __future__ import annotations

import pytest
import torch

from manifolds import Positive, PositiveDefinite, Stiefel
from manifolds.testing import check_manifold

F64 = torch.float64


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_contract(shape: tuple[int, ...]) -> None:
    check_manifold(Positive, shape)


def test_products() -> None:
    check_manifold(Positive * Stiefel**2, (9, 3))


def test_it_is_positive_definite_matrices_of_size_one() -> None:
    ours, theirs = Positive(), PositiveDefinite()
    x, y, v = (t.squeeze() for t in (*Positive().random(2, 5, dtype=F64), torch.randn(5, dtype=F64)))
    a, b, w = (t[:, None, None] for t in (x, y, v))
    assert torch.allclose(ours.exp(x, v), theirs.exp(a, w).flatten())
    assert torch.allclose(ours.log(x, y), theirs.log(a, b).flatten())
    assert torch.allclose(ours.distance(x, y), theirs.distance(a, b))
    assert torch.allclose(ours.inner(x, v, v), theirs.inner(a, w, w))
    assert torch.allclose(ours.gradient(x, v), theirs.gradient(a, w).flatten())


def test_the_mean_is_geometric() -> None:
    x = torch.tensor([1e-3, 1.0, 1e6], dtype=F64)
    assert torch.allclose(Positive().mean(x), torch.tensor(10.0, dtype=F64))


def test_what_is_a_point() -> None:
    x = torch.tensor([1e-30, 1.0, 0.0, -1.0, torch.inf, torch.nan])
    assert Positive().contains(x).tolist() == [True, True, False, False, False, False]
    z = torch.tensor([1 + 0j, 1 + 1j, 0j, -1 + 0j])
    assert Positive().contains(z).tolist() == [True, False, False, False]


def test_steps_are_relative() -> None:
    """Neither tiny nor huge numbers leave the set, however long the step."""
    x = torch.tensor([1e-20, 1.0, 1e20], dtype=F64)
    for v in (3 * x, -30 * x):
        assert bool(Positive().contains(Positive().retract(x, v)).all())
