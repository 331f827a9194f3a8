"""A preconditioner sees points and tangent vectors as f sees points, whatever solvers keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, minimize
from constraints.solve import TrustRegion
from manifolds import Euclidean, Manifold, Orthogonal, PositiveDefinite, SpecialOrthogonal, Sphere, Stiefel

F64, C128 = torch.float64, torch.complex128
CASES: list[tuple[Manifold, tuple[int, ...], torch.dtype]] = [
    (Sphere(), (6,), F64),
    (Stiefel(), (6, 2), F64),
    (Stiefel(), (2, 6), C128),
    (Stiefel(), (4, 4), F64),
    (Orthogonal(), (4, 4), C128),
    (SpecialOrthogonal(), (3, 4, 4), F64),
    (Stiefel("canonical"), (5, 2), F64),
    (Stiefel**2, (8, 4), F64),
    (PositiveDefinite(), (4, 4), F64),
    (Euclidean(), (5,), F64),
]  # fmt: skip


def far(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    target, weight = manifold.random(shape, dtype=dtype), 1 + torch.rand(shape, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (weight * (x - target).abs().square()).flatten(x.dim() - len(shape)).sum(-1)

    return f


class Half:
    """Half of a tangent vector, which is linear, symmetric and positive definite; what it is given is checked."""

    def __init__(self, manifold: Any) -> None:
        self.manifold, self.shapes = manifold, set[tuple[int, ...]]()

    def __call__(self, x: Any, v: Any) -> Any:
        if isinstance(x, dict):
            assert x.keys() == v.keys()
            return {name: self.one(self.manifold[name], x[name], v[name]) for name in x}
        return self.one(self.manifold, x, v)

    def one(self, manifold: Manifold, x: Tensor, v: Tensor) -> Tensor:
        self.shapes.add(tuple(v.shape))
        assert x.shape == v.shape
        assert bool(manifold.contains(x).all())
        torch.testing.assert_close(manifold.project(x, v), v, rtol=0, atol=1e-9 * (1 + v.abs().max().item()))
        return v / 2


@pytest.mark.parametrize(("manifold", "shape", "dtype"), CASES, ids=str)
def test_a_tensor(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    f, half, x0 = far(manifold, shape, dtype), Half(manifold), manifold.random(shape, dtype=dtype)
    found = minimize(lambda x: f(x).sum(), x0, manifold, solver=TrustRegion(preconditioner=half))
    assert found.converged, found.reason
    assert half.shapes == {shape}


@pytest.mark.parametrize(("manifold", "shape", "dtype"), CASES, ids=str)
def test_problems_and_starts(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    f, half = far(manifold, shape, dtype), Half(manifold)
    starts = manifold.random(3, *shape, dtype=dtype)
    assert minimize(f, starts, manifold, solver=TrustRegion(preconditioner=half), batched=True).converged.all()
    assert half.shapes == {(3, *shape)}
    half = Half(manifold)
    solver = TrustRegion(preconditioner=half)
    assert minimize(lambda x: f(x).sum(), starts[0], manifold, solver=solver, starts=2).converged
    assert half.shapes == {shape}
    half = Half(manifold)
    assert minimize(
        f, starts, manifold, solver=TrustRegion(preconditioner=half), batched=True, starts=2
    ).converged.all()
    assert half.shapes == {(3, *shape)}


def test_a_dict_and_a_model() -> None:
    manifolds = {0: Orthogonal(), "s": Sphere()}
    first, second = far(Orthogonal(), (3, 3), F64), far(Sphere(), (4,), F64)
    half = Half(manifolds)
    x0 = {0: Orthogonal().random(3, 3, dtype=F64), "s": Sphere().random(4, dtype=F64)}
    found = minimize(lambda x: first(x[0]) + second(x["s"]), x0, manifolds, solver=TrustRegion(preconditioner=half))
    assert found.converged
    assert half.shapes == {(3, 3), (4,)}

    model = constrain(nn.Linear(3, 3, dtype=F64), "weight", SpecialOrthogonal, Riemannian(), init="haar")
    half = Half({"weight": SpecialOrthogonal(), "bias": Euclidean()})
    closure = lambda: first(model.weight).sum() + model.bias.square().sum()  # noqa: E731
    assert minimize(closure, model, solver=TrustRegion(preconditioner=half)).converged
    assert half.shapes == {(3, 3), (3,)}


def test_one_that_is_the_inverse_takes_one_product() -> None:
    """With H^-1 for a preconditioner the model is minimized by one product with H; on O(n), in the shapes of X."""
    weight = torch.linspace(1, 1e4, 6, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (weight * (x - 1).square()).sum() / 2

    plain = minimize(f, (6,), Euclidean, solver=TrustRegion(), dtype=F64, tol=1e-9)
    inverse = minimize(
        f, (6,), Euclidean, solver=TrustRegion(preconditioner=lambda x, v: v / weight, radius=1e3), dtype=F64, tol=1e-9
    )
    assert inverse.converged
    assert inverse.evaluations.hessians - 10 <= 2 * inverse.steps < plain.evaluations.hessians


@pytest.mark.parametrize(
    ("preconditioner", "kind", "message"),
    [
        (lambda x, v: v.sum(), ValueError, r"shape \(3, 3\).*got shape \(\)"),
        (lambda x, v: v.float(), ValueError, "dtype torch.float32"),
        (lambda x, v: [v], TypeError, "got a list"),
        (lambda x, v: {"a": v}, TypeError, "got a dict"),
        (lambda x, v: v.mul_(0.5), ValueError, "clones"),
    ],
)
def test_what_it_may_not_return(preconditioner: Any, kind: type[Exception], message: str) -> None:
    f, x0 = far(Orthogonal(), (3, 3), F64), Orthogonal().random(3, 3, dtype=F64)
    with pytest.raises(kind, match=message):
        minimize(f, x0, Orthogonal, solver=TrustRegion(preconditioner=preconditioner))
