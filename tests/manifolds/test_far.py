"""However long a step is: it ends at a point, or at what is not finite and refused by whoever takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manifolds import Hyperboloid, Manifold, PoincareBall, Positive
from manifolds.engine import engine
from tests.sets import EVERY

SIZES = [10.0**k for k in (1, 2, 3, 5, 10, 18, 20, 30, 37, 100, 155, 160, 300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("manifold", [m for m in EVERY if m.dim((3, 3))], ids=str)
def test_a_step_of_any_length_ends_at_a_point_or_at_nothing(
    manifold: Manifold, n: int, sign: int, dtype: torch.dtype
) -> None:
    """By the retraction and in coordinates, up to where squares overflow and beyond."""
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(n, n, generator=generator, dtype=dtype)
    a = sign * torch.randn(n, n, generator=generator, dtype=dtype)
    v, chart = manifold.project(x, a), engine(manifold)
    for size in SIZES:
        if size > torch.finfo(dtype).max / 10:
            break
        ways = {
            "retract": lambda s: manifold.retract(x, s * v),
            "move": lambda s: chart.move(x, chart.coordinates(x, s * a)),
        }
        for name, way in ways.items():
            try:
                y = way(size)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of an infinite Gram matrix
                continue
            assert bool(manifold.contains(y).all()) or not bool(y.isfinite().all()), (name, size)


@pytest.mark.parametrize("manifold", [Hyperboloid(), PoincareBall()], ids=str)
@pytest.mark.parametrize("name", ["exp", "retract"])
def test_a_vector_whose_square_overflows_leads_where_it_points_or_nowhere(manifold: Any, name: str) -> None:
    """Where it does in float64, which takes its square; divided by an infinite length a vector points nowhere."""
    x = manifold.random(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = 1e25 * manifold.project(x, a)
    y = getattr(manifold, name)(x.float(), v.float()).double()
    near = (y - getattr(manifold, name)(x, v)).abs().amax(-1) < 1e-3
    assert bool((near | ~y.isfinite().all(-1)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_a_positive_number_that_underflows_is_the_least_normal_one(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 1.0, 3.0], dtype=dtype)
    c = torch.tensor([-1e3, 0.5, -1e30], dtype=dtype)
    least = torch.finfo(dtype).tiny
    for y in (Positive().exp(x, x * c), Positive().retract(x, x * c), engine(Positive()).move(x, c)):
        assert y.real[[0, 2]].tolist() == [least, least]
        torch.testing.assert_close(y[1], c[1].exp(), rtol=4 * torch.finfo(dtype).eps, atol=0)
        assert bool(Positive().contains(y).all())
