"""Both optimizers against a loop over single factors that writes their formulas out, with n x n matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import (
    BlockSpec,
    Euclidean,
    Grassmann,
    Manifold,
    Orthogonal,
    PoincareBall,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)
from manifolds.retractions import cayley


class Line:
    """Unconstrained entries, each with its own number."""

    decays = True

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (v.conj() * v).real

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def degrees(self, x: Tensor) -> int:
        return 2 if x.is_complex() else 1


class Ball(Line):
    """A unit vector."""

    decays = False

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g - torch.vdot(x, g).real * x

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.vdot(v, v).real

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return (x + v) / (x + v).norm()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.gradient(y, v)

    def degrees(self, x: Tensor) -> int:
        return len(x) - 1


class Frame(Line):
    """Orthonormal columns, with the Cayley transform of n x n matrices."""

    decays = False

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x @ (x.mH @ g + g.mH @ x) / 2

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (v.mH @ v).trace().real

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        eye = torch.eye(len(x), dtype=x.dtype)
        p = eye - x @ x.mH / 2
        w = p @ v @ x.mH - x @ v.mH @ p
        return torch.linalg.inv(eye - w / 2) @ (eye + w / 2) @ x

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        if x.shape[0] == x.shape[1]:
            return y @ x.mH @ v
        return v - y @ (y.mH @ v + v.mH @ y) / 2

    def degrees(self, x: Tensor) -> int:
        """The entries, less the equations X^H X = I."""
        n, p = x.shape
        return 2 * n * p - p * p if x.is_complex() else n * p - p * (p + 1) // 2


class Subspace(Line):
    """A subspace, by the polar factor."""

    decays = False

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x @ x.mH @ g

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (v.mH @ v).trace().real

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(x + v, full_matrices=False)
        return u @ vh

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.gradient(y, v)

    def degrees(self, x: Tensor) -> int:
        n, p = x.shape
        return (2 if x.is_complex() else 1) * p * (n - p)


class Gyrovector(Line):
    """A point of the unit ball of curvature -1, by Mobius sums; Ungar (2009), definitions 1.3 and 3.2."""

    def factor(self, x: Tensor) -> Tensor:
        return 2 / (1 - x @ x)

    def sum(self, x: Tensor, y: Tensor) -> Tensor:
        xy, xx, yy = x @ y, x @ x, y @ y
        return ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g / self.factor(x) ** 2

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return self.factor(x) ** 2 * (v @ v)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        c = self.factor(x) * v
        return self.sum(x, c / (1 + (1 + c @ c).sqrt()))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        scale = 2 * v.norm()  # the gyration is linear, but written for vectors inside of the ball
        turned = self.sum(-self.sum(y, -x), self.sum(y, self.sum(-x, v / scale)))
        return turned * scale * self.factor(x) / self.factor(y)

    def degrees(self, x: Tensor) -> int:
        return len(x)


class Canonical(Frame):
    """The same in the canonical metric."""

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g - x @ g.mH @ x

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (v.mH @ v).trace().real - (v.mH @ x @ x.mH @ v).trace().real / 2


class Rows(Line):
    """Orthonormal rows: the transpose of orthonormal columns."""

    decays = False

    def __init__(self, columns: Line) -> None:
        self.columns = columns

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.columns.gradient(x.mH, g.mH).mH

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return self.columns.squared_norm(x.mH, v.mH)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.columns.retract(x.mH, v.mH).mH

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.columns.transport(x.mH, y.mH, v.mH).mH

    def degrees(self, x: Tensor) -> int:
        return self.columns.degrees(x.mH)


@dataclass(frozen=True)
class Case:
    """A manifold, the shape of a parameter, and its factors: each a plain geometry and where its one point lies."""

    manifold: Manifold
    shape: tuple[int, ...]
    factors: Callable[[Tensor], list[tuple[Line, Tensor]]]
    dtype: torch.dtype = torch.float64


S, C = Stiefel(retraction=cayley), Stiefel("canonical", cayley)
CASES = {
    "square": Case(S, (5, 5), lambda x: [(Frame(), x)]),
    "square canonical": Case(C, (4, 4), lambda x: [(Canonical(), x)]),
    "orthogonal": Case(Orthogonal(), (4, 4), lambda x: [(Frame(), x)]),
    "special orthogonal": Case(SpecialOrthogonal(), (3, 3), lambda x: [(Frame(), x)]),
    "tall": Case(S, (7, 3), lambda x: [(Frame(), x)]),
    "tall canonical": Case(C, (7, 3), lambda x: [(Canonical(), x)]),
    "wide": Case(S, (3, 7), lambda x: [(Rows(Frame()), x)]),
    "wide canonical": Case(C, (3, 7), lambda x: [(Rows(Canonical()), x)]),
    "unitary": Case(S, (4, 4), lambda x: [(Frame(), x)], torch.complex128),
    "complex tall": Case(S, (6, 2), lambda x: [(Frame(), x)], torch.complex128),
    "complex wide": Case(S, (2, 6), lambda x: [(Rows(Frame()), x)], torch.complex128),
    "batch": Case(S, (2, 2, 5, 3), lambda x: [(Frame(), m) for m in x.flatten(0, 1)]),
    "sphere": Case(Sphere(), (3, 4), lambda x: [(Ball(), v) for v in x]),
    "subspace": Case(Grassmann(), (7, 3), lambda x: [(Subspace(), x)]),
    "complex subspace": Case(Grassmann(), (7, 3), lambda x: [(Subspace(), x)], torch.complex128),
    "poincare ball": Case(PoincareBall(), (3, 4), lambda x: [(Gyrovector(), v) for v in x]),
    "gates": Case(S**3, (12, 4), lambda x: [(Frame(), m) for m in x.split(4)]),
    "columns": Case(
        ProductManifold((S, S), BlockSpec(rows=2, axis=1)), (5, 6), lambda x: [(Frame(), m) for m in x.split(3, 1)]
    ),
    "one gate": Case(S * Euclidean**2, (12, 4), lambda x: [(Frame(), x[:4]), (Line(), x[4:])]),
    "apart": Case(
        ProductManifold((S, Euclidean(), S)), (12, 4), lambda x: [(Frame(), x[:4]), (Line(), x[4:8]), (Frame(), x[8:])]
    ),
    "kernels": Case(
        ProductManifold((S,) * 6, BlockSpec.pattern("o i h w -> (o i) h w")),
        (2, 3, 3, 3),
        lambda x: [(Frame(), m) for m in x.flatten(0, 1)],
    ),
    "interleaved": Case(
        ProductManifold((S,) * 2, BlockSpec.pattern("(d g) e -> g d e", g=2)),
        (8, 3),
        lambda x: [(Frame(), x[0::2]), (Frame(), x[1::2])],
    ),
}
ADAM: list[dict[str, Any]] = [
    {},
    {"betas": (0.5, 0.8), "eps": 1e-2},
    {"amsgrad": True, "betas": (0.9, 0.5)},
    {"maximize": True, "weight_decay": 0.3},
    {"second_moment": "sum", "eps": 1e-2},
]
SGD: list[dict[str, Any]] = [
    {},
    {"momentum": 0.7, "dampening": 0.2},
    {"momentum": 0.7, "nesterov": True},
    {"maximize": True, "weight_decay": 0.3, "momentum": 0.5},
]


def plain_adam(o: dict[str, Any], at: Line, x: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    grad = at.gradient(x, descent(o, at, x, g))
    m = beta1 * state.get("m", 0) + (1 - beta1) * grad
    d = 1 if o.get("second_moment") == "sum" else at.degrees(x)
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * at.squared_norm(x, grad) / d
    state["largest"] = torch.maximum(state.get("largest", torch.zeros_like(state["v"])), state["v"])
    v = state["largest"] if o.get("amsgrad") else state["v"]
    y = at.retract(x, -o["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + o.get("eps", 1e-8)))
    state["m"] = at.transport(x, y, m)
    return y


def plain_sgd(o: dict[str, Any], at: Line, x: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    grad, momentum = at.gradient(x, descent(o, at, x, g)), o.get("momentum", 0)
    m = grad if t == 1 else momentum * state["m"] + (1 - o.get("dampening", 0)) * grad
    y = at.retract(x, -o["lr"] * (grad + momentum * m if o.get("nesterov") else m if momentum else grad))
    state["m"] = at.transport(x, y, m)
    return y


def descent(o: dict[str, Any], at: Line, x: Tensor, g: Tensor) -> Tensor:
    return (-g if o.get("maximize") else g) + (o.get("weight_decay", 0) * x if at.decays else 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("kind", "plain", "options"),
    [(RiemannianAdam, plain_adam, {"lr": 0.1, **o}) for o in ADAM]
    + [(RiemannianSGD, plain_sgd, {"lr": 0.05, **o}) for o in SGD],
    ids=[f"adam {o}" for o in ADAM] + [f"sgd {o}" for o in SGD],
)
def test_steps_are_the_formulas(case: Case, kind: Any, plain: Callable[..., Tensor], options: dict[str, Any]) -> None:
    """Two parameters of one bucket and their plain copies agree to 1e-10 after each of 12 steps."""
    starts = [case.manifold.random(*case.shape, dtype=case.dtype) for _ in range(2)]
    params, copies = [nn.Parameter(x.clone()) for x in starts], [x.clone() for x in starts]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="weight_decay does nothing")
        optimizer = kind([{"params": params, "manifold": case.manifold}], **options)
    states: dict[tuple[int, int], dict[str, Any]] = {}
    for t in range(1, 13):
        for i, (p, x) in enumerate(zip(params, copies, strict=True)):
            g = torch.randn_like(x)
            p.grad = g.clone()
            cut = zip(case.factors(x), case.factors(g), strict=True)
            for k, ((at, point), (_, slope)) in enumerate(cut):
                point.copy_(plain(options, at, point.clone(), slope, states.setdefault((i, k), {}), t))
        optimizer.step()
        torch.testing.assert_close([p.detach() for p in params], copies, rtol=0, atol=1e-10)


def test_one_second_moment_for_each_factor() -> None:
    """A gate whose gradient is a thousand times that of another moves as far: each has a step size of its own."""
    manifold = Stiefel() ** 2
    x = manifold.random(8, 4, dtype=torch.float64)
    p = nn.Parameter(x.clone())
    g = torch.randn(4, 4, dtype=torch.float64)
    p.grad = torch.cat([x[:4] @ g, 1000 * x[4:] @ g])
    optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], lr=0.01)
    optimizer.step()
    first, second = (p.detach() - x).split(4)
    torch.testing.assert_close(first.norm(), second.norm(), rtol=1e-5, atol=0)
    assert optimizer.state[p]["exp_avg_sq"].shape == (2,)


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
def test_packed_equals_separate(kind: Any) -> None:
    """Stiefel**3 on a packed tensor gives the iterates of three Stiefel problems, and of three optimizers."""
    a = torch.randn(15, 5, dtype=torch.float64)
    start = (Stiefel() ** 3).random(15, 5, dtype=torch.float64)
    packed = nn.Parameter(start.clone())
    separate = [nn.Parameter(x.clone()) for x in start.split(5)]
    alone = [nn.Parameter(x.clone()) for x in start.split(5)]
    optimizers = [
        kind([{"params": [packed], "manifold": Stiefel**3}], lr=0.03),
        kind([{"params": separate, "manifold": Stiefel}], lr=0.03),
        *(kind([{"params": [x], "manifold": Stiefel}], lr=0.03) for x in alone),
    ]
    for _ in range(20):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for x in (packed, torch.cat(separate), torch.cat(alone)):
            (a * x).sum().exp().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(packed.detach(), torch.cat(separate).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(packed.detach(), torch.cat(alone).detach(), rtol=0, atol=1e-13)
