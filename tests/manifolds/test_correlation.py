"""Correlation matrices: the chart of their unit triangular factors, and the nearest one as it is known."""

from __future__ import annotations

import pickle

import pytest
import torch

from manifolds import Correlation, Oblique, PositiveDefinite
from manifolds.testing import check_manifold
from manifolds.testing._case import THEOREMS, Case

F64 = torch.float64


def points(count: int, n: int = 4, dtype: torch.dtype = F64) -> torch.Tensor:
    return Correlation().random(count, n, n, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 4, 4)], ids=str)
def test_the_contract(shape: tuple[int, ...]) -> None:
    check_manifold(Correlation, shape)


@pytest.mark.parametrize(("n", "seeds"), [(4, [8, 11, 128, 180]), (5, [25, 30, 31, 188])])
def test_descent_comes_to_far_targets_from_anywhere(n: int, seeds: list[int]) -> None:
    """Also from starts where long steps end at the boundary: singular matrices, from where all ways are short."""
    (reach,) = (theorem for theorem in THEOREMS if theorem.name == "move: reach")
    for seed in seeds:
        case = Case(Correlation(), (n, n), F64, torch.device("cpu"), seed)
        assert [finding.where for finding in reach.check(case) if not finding.holds] == []


def test_products() -> None:
    check_manifold(Correlation * PositiveDefinite, (6, 3))


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_distance_is_that_of_the_factors(dtype: torch.dtype) -> None:
    """|G - H| where X = D G G^H D with G of unit diagonal, from the definition."""
    x, y = points(2, dtype=dtype)
    g, h = (a / a.diagonal().unsqueeze(-1) for a in (torch.linalg.cholesky(x), torch.linalg.cholesky(y)))
    assert torch.allclose(Correlation().distance(x, y), torch.linalg.norm(g - h))
    middle = (g + h) / 2
    gram = middle @ middle.mH
    scale = gram.diagonal().real.rsqrt().to(dtype)
    assert torch.allclose(Correlation().mean(torch.stack([x, y])), scale[:, None] * gram * scale)


def test_a_random_point_has_a_diagonal_of_one() -> None:
    x = points(100, 5)
    assert torch.allclose(x.diagonal(dim1=-2, dim2=-1), torch.ones(100, 5, dtype=F64), rtol=0, atol=1e-15)


def test_what_is_a_point() -> None:
    m, one = Correlation(), torch.eye(2)
    assert m.residual(one) == 0
    assert m.residual(2 * one) == 1
    assert m.residual(torch.ones(2, 2)) == torch.inf
    with pytest.raises(ValueError, match=r"Correlation\(rank=r\)"):
        m.random(4, 2)


def test_the_nearest_correlation_matrix_is_that_of_higham() -> None:
    """Of the tridiagonal matrix (-1, 2, -1); it is singular, the boundary of `Correlation`: Y Y^T of rows of norm 1.

    Source: Higham, Computing the nearest correlation matrix - a problem from finance (2002), section 5.
    """
    a = torch.tensor([[2.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 2]], dtype=F64)
    rows = Oblique(axis=-1)
    y = rows.random(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    for _ in range(400):
        y = rows.retract(y, -0.1 * rows.gradient(y, 4 * (y @ y.mT - a) @ y))
    expected = torch.tensor(
        [
            [1, -0.8084, 0.1916, 0.1068],
            [-0.8084, 1, -0.6562, 0.1916],
            [0.1916, -0.6562, 1, -0.8084],
            [0.1068, 0.1916, -0.8084, 1],
        ],
        dtype=F64,
    )
    assert torch.allclose(y @ y.mT, expected, rtol=0, atol=5e-5)


def test_factors_of_low_rank_give_correlation_matrices() -> None:
    m = Correlation(rank=2)
    assert repr(m) == "Correlation(rank=2)"
    assert m == Correlation(rank=2) != Correlation(rank=3)
    assert pickle.loads(pickle.dumps(m)) == m
    y = m.random(5, 2, dtype=torch.float64)
    x = y @ y.mT
    torch.testing.assert_close(x.diagonal(), torch.ones(5, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(x)) == 2
    assert m.dim((5, 2)) == 5
    check_manifold(m, (3, 2), dtype=torch.float64)
    with pytest.raises(ValueError, match="2 columns"):
        m.dim((5, 3))
    with pytest.raises(ValueError, match="rank of Correlation"):
        Correlation(rank=0)
