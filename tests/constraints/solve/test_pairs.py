"""Products with the inverse Hessian of L-BFGS, against the matrix that its definition makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constraints.solve.betas import Change, memoryless_bfgs
from constraints.solve.derivative import derivative
from constraints.solve.pairs import Carried, Pairs, Step, Still
from constraints.solve.piece import Piece
from constraints.solve.space import Space
from manifolds import Euclidean

F64 = torch.float64
N, B = 6, 3


def dense(pairs: list[tuple[Tensor, Tensor, float]], scale: float) -> Tensor:
    """H <- (I - w s y^T) H (I - w y s^T) + w s s^T, from scale I on."""
    h, eye = scale * torch.eye(N, dtype=F64), torch.eye(N, dtype=F64)
    for s, y, w in pairs:
        left = eye - w * torch.outer(s, y)
        h = left @ h @ left.T + w * torch.outer(s, s)
    return h


def step(d: Tensor, change: Tensor, t: Any, done: Any, norm: Any) -> Step:
    zero = torch.zeros_like(d)
    length = t * (d.norm(dim=-1, keepdim=True) if d.dim() > 1 else d.norm().item())
    return Step(zero, zero, norm, d, t, length, zero, change, done, done | True)


@pytest.mark.parametrize(("kind", "batched"), [(Still, False), (Carried, False), (Carried, True)])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 9])
def test_the_product_is_that_of_the_matrix(kind: type[Pairs], count: int, batched: bool) -> None:
    """Also where old pairs are dropped, some have no weight, and all are forgotten after a search that failed."""
    most, shape = 4, (B, N) if batched else (N,)
    space = Space([Piece(None, Euclidean(ndim=1), (N,), F64)], batched)
    like: Any = torch.zeros(B, 1, dtype=F64) if batched else 0.0
    x, one = torch.zeros(shape, dtype=F64), like + 1.0
    pairs: Pairs = Still(most, one, x) if kind is Still else Carried(most, one)
    a = torch.randn(N, N, dtype=F64)
    a = a @ a.T + torch.eye(N, dtype=F64)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    scale = torch.ones(B if batched else 1, 1, dtype=F64)
    for k in range(count):
        d, t, done = torch.randn(shape, dtype=F64), like + 0.5, (like == 0) & (k != 5)
        change = 0.5 * d @ a if k != 2 else -d  # the third has no positive curvature
        pairs.add(space, step(d, change, t, done, like + 1e-3), 1e-6)
        s, y = (v.reshape(-1, N) for v in (0.5 * d, change))
        curvature = (s * y).sum(1, keepdim=True)
        weight = torch.where((curvature > 0) & (k != 5), 1 / curvature, 0.0)
        scale = torch.where(weight > 0, curvature / (y * y).sum(1, keepdim=True), scale)
        if k == 5:
            kept = [(s, y, 0 * w) for s, y, w in kept]
        kept = [*kept, (s, y, weight)][-most:]
    g = torch.randn(shape, dtype=F64)
    found = pairs.times(space, x, g).reshape(-1, N)
    for i, row in enumerate(g.reshape(-1, N)):
        h = dense([(s[i], y[i], w[i].item()) for s, y, w in kept], scale[i].item())
        torch.testing.assert_close(found[i], -h @ row, rtol=1e-10, atol=1e-10)
    assert bool(torch.as_tensor(pairs.none_used()).all()) == (not any(bool((w > 0).any()) for _, _, w in kept))
    if batched:
        return
    steps, changes = pairs.stacked()
    torch.testing.assert_close(steps, torch.stack([s[0] for s, _, _ in kept]))
    again: Pairs = Still(most, one, x) if kind is Still else Carried(most, one)
    for s, y, w in zip(steps, changes, pairs.weights, strict=True):
        again.restore(space, s, y, w)
    again.scale = pairs.scale
    torch.testing.assert_close(again.times(space, x, g), pairs.times(space, x, g))


@pytest.mark.parametrize("lies_still", [True, False])
def test_each_problem_keeps_the_last_pairs_of_its_own_steps(monkeypatch: pytest.MonkeyPatch, lies_still: bool) -> None:
    """Where the step of a problem has not ended all stays as it was; the others go on."""
    most = 3
    monkeypatch.setattr(Space, "lies_still", lies_still)
    space = Space([Piece(None, Euclidean(ndim=1), (N,), F64)], True)
    x, one = torch.zeros(B, N, dtype=F64), torch.ones(B, 1, dtype=F64)
    pairs = Carried(most, one)
    kept: list[list[tuple[Tensor, Tensor, float]]] = [[] for _ in range(B)]
    scale = [1.0] * B
    a = torch.randn(N, N, dtype=F64)
    a = a @ a.T + torch.eye(N, dtype=F64)
    for k in range(12):
        # problem 0 ends a step each time, 1 every second, 2 every third; the sixth step of 0 fails
        ended = torch.tensor([[k % (i + 1) == 0] for i in range(B)])
        done = ended & torch.tensor([[k != 5], [True], [True]])
        d = torch.randn(B, N, dtype=F64)
        change = torch.where(done, 0.5 * d @ a, 0.0)
        t = torch.where(done, 0.5, 0.0)
        pairs.add(space, step(d, change, t, done, one * 1e-3)._replace(ended=ended), 1e-6)
        for i in range(B):
            if done[i]:
                curvature = (0.5 * d[i] @ change[i]).item()
                kept[i] = [*kept[i], (0.5 * d[i], change[i], 1 / curvature)][-most:]
                scale[i] = curvature / (change[i] @ change[i]).item()
            elif ended[i]:
                kept[i] = [(s, y, 0.0) for s, y, _ in kept[i]]
        g = torch.randn(B, N, dtype=F64)
        found = pairs.times(space, x, g)
        for i in range(B):
            torch.testing.assert_close(found[i], -dense(kept[i], scale[i]) @ g[i], rtol=1e-9, atol=1e-9)
            assert bool(pairs.none_used()[i]) == (not any(w > 0 for _, _, w in kept[i]))


def test_conjugate_gradients_without_memory_are_bfgs_of_one_pair() -> None:
    g, old, d = (torch.randn(N, dtype=F64) for _ in range(3))
    y = g - old
    d = d * torch.sign(d @ y)
    terms = memoryless_bfgs(Change(g, old, d, lambda u, v: (u @ v).item()))
    t = 0.3  # the last step is t d
    scale = (t * d @ y / (y @ y)).item()
    h = dense([(t * d, y, 1 / (t * d @ y).item())], scale)
    torch.testing.assert_close(scale * (-g + terms.beta * d + terms.of_change * y), -h @ g)
    assert terms.first is not None
    assert abs(t * terms.first - scale) < 1e-12


def test_derivatives_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine itself, and where a torch has another one."""

    def all_of(x: Tensor, unused: Tensor) -> list[Any]:
        with torch.enable_grad():
            outputs = [x.sin().sum(), (x * x)[:2]]
        weights = [torch.tensor(2.0, dtype=F64), torch.tensor([1.0, -1.0], dtype=F64)]
        first = derivative(outputs, weights, [x, unused], twice=True)
        assert first[0] is not None
        second = derivative([first[0]], [x.detach()], [x], keep=True)
        return [*first, *second, *derivative([first[0]], [x.detach()], [x]), x.grad]

    x, unused = torch.randn(3, dtype=F64).requires_grad_(), torch.randn(2, dtype=F64).requires_grad_()
    found = all_of(x, unused)
    monkeypatch.setattr("constraints.solve.derivative._engine", lambda: None)
    expected = all_of(x, unused)
    assert [g is None for g in found] == [g is None for g in expected] == [False, True, False, False, True]
    for mine, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
