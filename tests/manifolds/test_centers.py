"""At the most symmetric point of each set, 0 or the identity, and v = 0: all derivatives are numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from manifolds import (
    Correlation,
    DoublyStochastic,
    Euclidean,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    Hyperboloid,
    Manifold,
    Oblique,
    Orthogonal,
    PoincareBall,
    Positive,
    PositiveDefinite,
    Simplex,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
)
from manifolds.positive_definite import Name
from tests.sets import EVERY, public

# torch compiles its own rules for forward derivatives by torch.jit.script when they are first used
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

ONE = torch.eye(4, dtype=torch.float64)
CENTERS: list[tuple[Manifold, Tensor]] = [
    (Correlation(), ONE[:3, :3]),
    (DoublyStochastic(), torch.full_like(ONE, 0.25)),
    (Euclidean(1), 0 * ONE[0]),
    (FixedRank(2), torch.diag(torch.tensor([1, 1, 0.0], dtype=torch.float64))),
    (Grassmann(), ONE[:, :2]),
    (Hyperboloid(), ONE[0]),
    (Oblique(), ONE[:, :2]),
    (Orthogonal(), ONE[:3, :3]),
    (PoincareBall(), 0 * ONE[0]),
    (Positive(), torch.ones((), dtype=torch.float64)),
    *((PositiveDefinite(metric), ONE[:3, :3]) for metric in get_args(Name)),
    (Simplex(), 0.25 * ONE.sum(0)),
    (Skew(), 0 * ONE),
    (SpecialOrthogonal(), ONE[:3, :3]),
    (Sphere(), ONE[0]),
    (Stiefel(), ONE[:, :2]),
    (Stiefel("canonical"), ONE[:, :2]),
    (Symmetric(), 0 * ONE),
]


def test_no_set_is_forgotten() -> None:
    assert public() == {type(manifold) for manifold, _ in CENTERS} == {type(manifold) for manifold in EVERY}


def maps(manifold: Manifold) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Functions of a point and a tangent vector."""
    yield "retract", manifold.retract
    yield "transport", lambda x, v: manifold.transport(x, manifold.retract(x, v), manifold.project(x, x + 1))
    yield "norm", lambda x, v: manifold.norm(x, manifold.project(x, v))
    if isinstance(manifold, GeodesicManifold):
        yield "exp", manifold.exp
        yield "log", lambda x, v: manifold.log(x, manifold.retract(x, v))
        yield "distance", lambda x, v: manifold.distance(x, manifold.retract(x, v))


@pytest.mark.parametrize(("manifold", "x"), CENTERS, ids=lambda each: str(each) if isinstance(each, Manifold) else "")
def test_derivatives_are_finite_at_the_center(manifold: Manifold, x: Tensor) -> None:
    v = torch.zeros_like(x)
    assert manifold.contains(x).all()
    for name, f in maps(manifold):
        for way in (jacrev, jacfwd):
            for argument in (0, 1):
                assert way(f, argument)(x, v).isfinite().all(), (name, way.__name__, argument)
    assert jacrev(jacrev(manifold.retract, 1), 1)(x, v).isfinite().all()
