"""Derivatives on open sets: every mode of torch gives the same, finite too where points meet and eigenvalues do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from manifolds import Correlation, GeodesicManifold, Positive, PositiveDefinite
from manifolds.engine import engine
from manifolds.positive_definite import Name

F64 = torch.float64
SETS: list[GeodesicManifold] = [*(PositiveDefinite(metric) for metric in get_args(Name)), Correlation(), Positive()]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func


def functions(m: Any, x: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Functions of any tensor, and where each begins: at x, or at a vector of 0."""
    e = engine(m)
    return {
        "distance": (lambda y: (m.distance(x, y) ** 2).sum(), x),
        "inner": (lambda y: m.inner(y, m.project(y, x), m.project(y, x)).sum(), x),
        "exp": (lambda v: (m.exp(x, m.project(x, v)) ** 3).sum(), torch.zeros_like(x)),
        "move": (lambda c: (e.move(x, e.coordinates(x, c)) ** 3).sum(), torch.zeros_like(x)),
    }


@pytest.mark.parametrize("name", ["distance", "inner", "exp", "move"])
@pytest.mark.parametrize("manifold", SETS, ids=str)
def test_every_mode_gives_the_same(manifold: Any, name: str) -> None:
    """Forward over reverse, reverse over reverse, and vmap, off the start and at it."""
    shape = (3, 3) if manifold.ndim else (3,)
    generator = torch.Generator().manual_seed(0)
    x, y = manifold.random(2, *shape, generator=generator, dtype=F64)
    one = torch.eye(3, dtype=F64) if manifold.ndim else torch.ones(3, dtype=F64)
    for base in (x, one):
        function, start = functions(manifold, base)[name]
        for at in (start, start + 0.3 * (y - start) if name in {"distance", "inner"} else 0.1 * y):
            forward = torch.func.hessian(function)(at)
            reverse = torch.func.jacrev(torch.func.jacrev(function))(at)
            assert bool(forward.isfinite().all())
            torch.testing.assert_close(forward, reverse, rtol=1e-7, atol=1e-7)
            many = torch.func.vmap(torch.func.grad(function))(at.expand(2, *shape))
            leaf = at.clone().requires_grad_()
            function(leaf).backward()  # type: ignore[no-untyped-call]
            torch.testing.assert_close(many[1], leaf.grad, rtol=1e-9, atol=1e-9)
