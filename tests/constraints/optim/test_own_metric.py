"""Retracted on sets whose metric is not that of the ambient space: steps have their length in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, param_groups
from constraints.optim import Retracted, RiemannianAdam, RiemannianSGD
from manifolds import (
    Correlation,
    DoublyStochastic,
    Euclidean,
    GeodesicManifold,
    Hyperboloid,
    Manifold,
    PoincareBall,
    Positive,
    PositiveDefinite,
    Simplex,
    Stiefel,
    Symmetric,
)
from manifolds.engine import Isometric, engine
from tests.sets import EVERY, public

OWN = [m for m in EVERY if type(m).inner is not Manifold.inner and not isinstance(m, Stiefel)]
SEEN = [m for m in OWN if isinstance(engine(m), Isometric)]
ENTRYWISE = [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad]
DEFINITE = torch.diag(torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)) + 0
CORNERS: dict[type[Manifold], list[Tensor]] = {
    Positive: [torch.full((3, 3), size, dtype=torch.float64) for size in (1e-4, 5e-4, 1e4)],
    PoincareBall: [0.999 * torch.eye(3, dtype=torch.float64)],
    Simplex: [torch.softmax(30 * torch.eye(3, dtype=torch.float64), -1)],
    DoublyStochastic: [(1 - 3e-6) * torch.eye(3, dtype=torch.float64) + 1e-6],
    PositiveDefinite: [1e-4 * DEFINITE, 30 * DEFINITE],
    Correlation: [torch.full((3, 3), 0.97, dtype=torch.float64) + 0.03 * torch.eye(3, dtype=torch.float64)],
}
"""Points near an edge of the set, or of a size far from 1."""
STARTS = [(m, x) for m in SEEN for x in CORNERS[type(m)]]


def apart(manifold: Manifold, x: Tensor, y: Tensor) -> Tensor:
    """The distance; of doubly stochastic matrices, whose geodesics are not known, one of their roots."""
    if isinstance(manifold, GeodesicManifold):
        return manifold.distance(x, y)
    return 2 * (x.sqrt() - y.sqrt()).flatten(-2).norm(dim=-1)


def target(manifold: Manifold) -> Tensor:
    return manifold.random(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(optimizer: Any, p: nn.Parameter, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    for _ in range(steps):
        p.grad = None
        loss(p).backward()
        optimizer.step()
    return p.detach()


def held(manifold: Manifold, x: Tensor) -> tuple[nn.Parameter, list[dict[str, Any]]]:
    p = nn.Parameter(x.clone())
    return p, [{"params": [p], "manifold": manifold}]


def test_every_set_with_a_metric_of_its_own_is_seen_or_refused() -> None:
    assert {type(m) for m in SEEN} == set(CORNERS)
    assert {type(m) for m in OWN} - {type(m) for m in SEEN} == {Hyperboloid}
    assert {kind for kind in public() if kind.inner is not Manifold.inner} == {type(m) for m in OWN} | {Stiefel}


@pytest.mark.parametrize(
    ("manifold", "start"), STARTS, ids=lambda each: str(each) if isinstance(each, Manifold) else ""
)
def test_adam_ends_where_riemannian_adam_ends(manifold: Manifold, start: Tensor) -> None:
    """From where entries say nothing of lengths: no point is lost, and both are at a minimum of squared distances."""
    y = target(manifold)

    def loss(x: Tensor) -> Tensor:
        return apart(manifold, x, y).square().sum()

    ends = []
    for kind in (lambda g: RiemannianAdam(g, lr=0.15), lambda g: Retracted(torch.optim.Adam(g, lr=0.15))):
        p, groups = held(manifold, start)
        ends.append(trained(kind(groups), p, loss, 200))
        assert manifold.contains(ends[-1]).all()
    theirs, ours = ends
    far = apart(manifold, start, y).max()
    assert apart(manifold, theirs, y).max() < 0.1 * far
    assert apart(manifold, ours, theirs).max() < 0.1 * far


@pytest.mark.parametrize("manifold", SEEN, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_step_of_adam_is_as_long_as_that_of_riemannian_adam(manifold: Manifold, scale: float) -> None:
    """lr in each entry of orthonormal coordinates, whatever the size of the gradient."""
    start, lr = CORNERS[type(manifold)][0], 1e-6
    many = {type(Positive()): 1}.get(type(manifold), start[0].numel() if manifold.ndim == 1 else start.numel())
    p, groups = held(manifold, start)
    p.grad = scale * torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype)
    Retracted(torch.optim.Adam(groups, lr=lr, eps=1e-300)).step()
    length = apart(manifold, start, p.detach())
    # the projection on T_x leaves a part of it; x itself is rounded to eps of what is infinitely near an edge
    assert (length < 1.01 * lr * math.sqrt(many)).all()
    assert (length > 0.1 * lr).all()


def test_adam_of_positive_numbers_is_adam_of_their_logarithms() -> None:
    generator = torch.Generator().manual_seed(0)
    start = Positive().random(4, generator=generator, dtype=torch.float64) * torch.tensor([1e-8, 1.0, 1e8, 1e-4])
    y = Positive().random(4, generator=generator, dtype=torch.float64)
    for kind in ENTRYWISE:
        p, groups = held(Positive(), start)
        free = nn.Parameter(start.log())
        ours = trained(Retracted(kind(groups, lr=0.01)), p, lambda x: (x / y).log().square().sum(), 50)
        theirs = trained(kind([free], lr=0.01), free, lambda x: (x - y.log()).square().sum(), 50)
        torch.testing.assert_close(ours, theirs.exp(), rtol=1e-10, atol=0)


def test_adam_of_definite_matrices_under_log_euclidean_is_adam_of_their_logarithms() -> None:
    manifold = PositiveDefinite("log-euclidean")
    log = Symmetric().random(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = target(manifold)
    p, groups = held(manifold, torch.linalg.matrix_exp(log))
    free = nn.Parameter(log.clone())
    ours = trained(Retracted(torch.optim.Adam(groups, lr=0.01)), p, lambda x: (x - y).square().sum(), 20)
    chart: Callable[[Tensor], Tensor] = lambda s: (torch.linalg.matrix_exp((s + s.mT) / 2) - y).square().sum()  # noqa: E731
    theirs = trained(torch.optim.Adam([free], lr=0.01), free, chart, 20)
    torch.testing.assert_close(ours, torch.linalg.matrix_exp(theirs), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("manifold", SEEN, ids=str)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}], ids=str)
def test_sgd_is_riemannian_sgd(manifold: Manifold, options: dict[str, Any]) -> None:
    start = target(manifold)
    (ours, a), (theirs, b) = held(manifold, start), held(manifold, start)
    for optimizer, p in (
        (Retracted(torch.optim.SGD(a, lr=0.01, **options)), ours),
        (RiemannianSGD(b, lr=0.01, **options), theirs),
    ):
        for seed in range(4):
            p.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=p.dtype)
            optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-10, atol=1e-12)
    assert not torch.equal(ours.detach(), start)


@pytest.mark.parametrize("manifold", SEEN, ids=str)
def test_decoupled_decay_is_that_of_the_weight(manifold: Manifold) -> None:
    """x - lr lambda P_x(x) to first order, without a gradient; on positive numbers x exp(-lr lambda)."""
    start = target(manifold)
    errors = []
    for lr in (1e-3, 5e-4):
        p, groups = held(manifold, start)
        p.grad = torch.zeros_like(p)
        Retracted(torch.optim.AdamW(groups, lr=lr, weight_decay=0.5)).step()
        errors.append((p.detach() - (start - lr * 0.5 * manifold.project(start, start))).norm())
    assert errors[1] < 0.26 * errors[0] + 1e-15
    if manifold == Positive():
        torch.testing.assert_close(p.detach(), start * math.exp(-5e-4 * 0.5), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "manifold", [m for m in SEEN if isinstance(m, Positive | PositiveDefinite | Correlation)], ids=str
)
def test_complex_points(manifold: Manifold) -> None:
    """Hermitian ones too, several parameters at once, in single precision; a copy goes on as the original."""
    random = torch.Generator().manual_seed(0)
    points = [nn.Parameter(manifold.random(3, 3, generator=random, dtype=torch.complex64)) for _ in range(2)]
    optimizer = Retracted(torch.optim.AdamW([{"params": points, "manifold": manifold}], lr=0.02))
    (again, other) = copy.deepcopy((points, optimizer))
    for seed in range(30):
        for p, q in zip(points, again, strict=True):
            p.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=p.dtype)
            q.grad = p.grad.clone()
        optimizer.step()
        other.step()
    assert all(manifold.contains(p.detach()).all() for p in points)
    assert all(torch.equal(p, q) for p, q in zip(points, again, strict=True))


@pytest.mark.parametrize("manifold", SEEN, ids=str)
def test_without_a_gradient_nothing_moves(manifold: Manifold) -> None:
    start = target(manifold)
    p, groups = held(manifold, start)
    optimizer = Retracted(torch.optim.Adam(groups, lr=0.1))
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), start, rtol=1e-14, atol=1e-15)
    p.grad = torch.full_like(p, math.nan)
    with pytest.raises(ValueError, match="NaN or Inf"):
        optimizer.step()


def test_a_run_goes_on_bit_for_bit_and_state_of_entries_is_refused() -> None:
    """That of an optimizer that saw vectors is not of one that sees orthonormal coordinates."""
    manifold = Simplex * Euclidean
    start = torch.cat([Simplex().random(3), torch.ones(3)])
    (p, a), (q, b) = held(manifold, start), held(manifold, start)
    one, other = Retracted(torch.optim.Adam(a, lr=0.1)), Retracted(torch.optim.Adam(b, lr=0.1))

    def go(optimizer: Retracted, x: nn.Parameter, first: int, last: int) -> None:
        for seed in range(first, last):
            x.grad = torch.randn(6, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    go(one, p, 0, 3)
    saved = copy.deepcopy(one.state_dict())
    q.data.copy_(p.data)
    other.load_state_dict(saved)
    go(one, p, 3, 6)
    go(other, q, 3, 6)
    assert torch.equal(p, q)
    assert saved["param_groups"][0]["retracted"] == "orthonormal coordinates"
    saved["param_groups"][0]["retracted"] = "coordinates"
    with pytest.raises(ValueError, match=r"that saw coordinates, and here Adam sees orthonormal coordinates"):
        other.load_state_dict(saved)


# What is refused -----------------------------------------------------------------------------------------------------


class Mine(torch.optim.Adam):
    """An optimizer that nobody knows."""


@dataclass(frozen=True)
class Roots(Euclidean):
    """Vectors under half of their metric, by an author who knows no engine."""

    ndim: int = 1

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1) / 2

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return 2 * g


@pytest.mark.parametrize("kind", [Mine, torch.optim.Adafactor])
@pytest.mark.parametrize("manifold", [*SEEN, Hyperboloid(), Roots()], ids=str)
def test_an_optimizer_that_would_see_entries_is_refused(kind: Any, manifold: Manifold) -> None:
    """With ways out that are right: Adam, where there are coordinates for it, SGD, or a gradient of one's own."""
    p, groups = held(manifold, target(manifold))
    with pytest.raises(ValueError, match=r"parameter 0 of group 0.*whose metric is not that of its entries") as told:
        Retracted(kind(groups, lr=0.01))
    assert ("AdamW" in str(told.value)) == isinstance(engine(manifold), Isometric)
    ways: list[Any] = [
        lambda groups: RiemannianAdam(groups, lr=0.01),
        lambda groups: Retracted(torch.optim.SGD(groups, lr=0.01)),
        lambda groups: Retracted(torch.optim.ASGD(groups, lr=0.01)),
        lambda groups: Retracted(kind(groups, lr=1e-6), gradient=lambda manifold, x, g: manifold.gradient(x, g)),
    ]
    if "AdamW" in str(told.value):
        ways.append(lambda groups: Retracted(torch.optim.AdamW(groups, lr=0.01)))
    for way in ways:
        optimizer = way([{"params": [p], "manifold": manifold}])
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert manifold.contains(p.detach()).all()


@pytest.mark.parametrize("manifold", [Hyperboloid(), Roots(), Stiefel * Hyperboloid], ids=str)
def test_adam_is_refused_where_there_are_no_coordinates_for_it(manifold: Manifold) -> None:
    x = torch.cat([Stiefel().random(3, 3), Hyperboloid().random(3, 3)]) if len(str(manifold)) > 12 else target(manifold)
    _, groups = held(manifold, x)
    with pytest.raises(ValueError, match=r"whose metric is not that of its entries.*RiemannianAdam\(model\)"):
        Retracted(torch.optim.Adam(groups))


def test_the_way_out_of_an_optimizer_that_knows_no_manifold_is_none_that_is_refused() -> None:
    layer = constrain(nn.Linear(3, 3), "weight", PositiveDefinite(), Riemannian(), init="identity")
    layer(torch.ones(3)).sum().backward()
    for kind, wraps in ((Mine, False), (torch.optim.NAdam, True)):
        with pytest.raises(ValueError, match="would leave the manifold") as told:
            kind(layer.parameters()).step()
        assert ("Retracted" in str(told.value)) == wraps
    Retracted(torch.optim.NAdam(param_groups(layer))).step()
