"""Open sets in both engines: the ways in, optima that are known, half precision, and what is refused."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import constraints.optim
from constraints import (
    AveragedModel,
    Riemannian,
    Trivialization,
    constrain,
    export_state_dict,
    rebase,
    report,
    unconstrain,
)
from manifolds import Correlation, Manifold, Positive, PositiveDefinite
from manifolds.positive_definite import Name
from tests.sets import EVERY

F64 = torch.float64
SETS: list[Manifold] = [PositiveDefinite(metric) for metric in get_args(Name)]
every_set = pytest.mark.parametrize("manifold", SETS, ids=str)
methods = pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=["trivialized", "riemannian"])


class Point(nn.Module):
    """A module with one weight."""

    def __init__(self, *shape: int, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)))


def made(manifold: Manifold, method: Any, init: Any, dtype: torch.dtype = F64) -> Any:
    return constrain(Point(4, 4, dtype=dtype), "weight", manifold, method, init=init)


def target(dtype: torch.dtype = F64, high: float = 0.5, low: float = -1.5) -> Tensor:
    """Eigenvalues from 10^high to 10^low."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 4, dtype=dtype, generator=generator)
    q = torch.linalg.qr(a).Q
    return (q * torch.logspace(high, low, 4, dtype=dtype.to_real())) @ q.mH


def likelihood(x: Tensor, s: Tensor) -> Tensor:
    """log det X + tr(X^-1 S), of a Gaussian with covariance X whose data have covariance S: smallest at X = S."""
    factor = torch.linalg.cholesky(x)
    return 2 * factor.diagonal().real.log().sum() + torch.cholesky_solve(s, factor).diagonal().real.sum()


def train(model: Any, optimizer: Any, s: Tensor, steps: int, lr: float) -> None:
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - k / steps) ** 2
        optimizer.zero_grad()
        likelihood(model.weight, s).backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("name", ["RiemannianAdam", "RiemannianSGD"])
@every_set
def test_an_optimum_is_found_on_the_manifold(manifold: Manifold, name: str, dtype: torch.dtype) -> None:
    model, s = made(manifold, Riemannian(), "identity", dtype), target(dtype)
    options: dict[str, Any] = {}
    lr = 0.1
    if name == "RiemannianSGD":  # the second derivative at S under Bures-Wasserstein is 4 over its eigenvalues
        s, options, lr = target(dtype, 0.3, -0.3), {"momentum": 0.9}, 0.02
    train(model, getattr(constraints.optim, name)(model, lr=lr, **options), s, 200, lr)
    assert report(model)[0].ok
    assert float((model.weight.detach() - s).norm() / s.norm()) < 1e-3


@pytest.mark.parametrize("rebase", [None, 10])
@every_set
def test_an_optimum_is_found_in_coordinates(manifold: Manifold, rebase: int | None) -> None:
    model, s = made(manifold, Trivialization(rebase_every=rebase), "identity"), target()
    train(model, torch.optim.Adam(model.parameters(), lr=0.1), s, 200, 0.1)
    assert report(model)[0].ok
    assert float((model.weight.detach() - s).norm() / s.norm()) < 1e-3


@every_set
def test_coordinates_reach_the_whole_cone_from_one_base(manifold: Manifold) -> None:
    """To 1e-4 times an eigenvalue, and 1e4 times, where x + v + v x^-1 v / 2 cannot go below one half."""
    model = made(manifold, Trivialization(rebase_every=torch.inf), "identity")
    s = torch.diag(torch.tensor([1e-4, 1e4, 1.0, 1.0], dtype=F64))
    held = model.parametrizations.weight
    optimizer = torch.optim.LBFGS([held.original], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = likelihood(model.weight, s)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    assert torch.equal(held[0].base, torch.eye(4, dtype=F64))
    assert torch.allclose(torch.linalg.eigvalsh(model.weight.detach()), torch.linalg.eigvalsh(s), rtol=1e-4)


@methods
@every_set
def test_the_ways_in(manifold: Manifold, method: Any) -> None:
    for init in ("haar", "identity", target(), lambda w: w @ w.mT + torch.eye(4, dtype=F64)):
        model = made(manifold, method, init)
        assert report(model)[0].ok
        assert bool(manifold.contains(unconstrain(model, "weight").weight))


@methods
@every_set
def test_a_value_outside_is_refused_with_the_ways_in(manifold: Manifold, method: Any) -> None:
    for init in (None, -target()):
        with pytest.raises(ValueError, match=r"no nearest point to take instead.*init='haar'.*init='identity'"):
            made(manifold, method, init)


@methods
@every_set
def test_half_precision_keeps_a_master(manifold: Manifold, method: Any) -> None:
    """A well-conditioned target is found to the digits of bfloat16."""
    model = made(manifold, method, "identity", torch.bfloat16)
    s = torch.eye(4) + 0.2 * torch.ones(4, 4)
    kind: Any = torch.optim.Adam if isinstance(method, Trivialization) else constraints.optim.RiemannianAdam
    optimizer = kind(model.parameters() if kind is torch.optim.Adam else model, lr=0.05)
    for k in range(60):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - k / 60)
        optimizer.zero_grad()
        likelihood(model.weight.float(), s).backward()
        optimizer.step()
    assert model.weight.dtype is torch.bfloat16
    assert report(model)[0].ok
    assert float((model.weight.detach().float() - s).norm()) < 0.05


@methods
def test_positive_numbers_of_all_sizes_are_found_at_one_rate(method: Any) -> None:
    """sum (log x - log s)^2 / 2, from 1e-3 to 1e3, with one learning rate: a step is relative."""
    s = torch.logspace(-3, 3, 7, dtype=F64)
    model = constrain(Point(7), "weight", Positive, method, init=torch.ones(7, dtype=F64))
    kind: Any = torch.optim.Adam if isinstance(method, Trivialization) else constraints.optim.RiemannianAdam
    optimizer = kind(model.parameters() if kind is torch.optim.Adam else model, lr=0.2)
    for k in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - k / 200)
        optimizer.zero_grad()
        ((model.weight.log() - s.log()) ** 2).sum().backward()
        optimizer.step()
    assert report(model)[0].ok
    assert torch.allclose(model.weight.detach(), s, rtol=1e-3)


@methods
def test_a_correlation_is_fitted(method: Any) -> None:
    """The likelihood of data that have unit variances, at its optimum."""
    d = target().diagonal().rsqrt()
    s = d[:, None] * target() * d
    model = made(Correlation(), method, "identity")
    kind: Any = torch.optim.Adam if isinstance(method, Trivialization) else constraints.optim.RiemannianAdam
    optimizer = kind(model.parameters() if kind is torch.optim.Adam else model, lr=0.1)
    train(model, optimizer, s, 1000, 0.1)
    assert report(model)[0].ok
    assert torch.equal(model.weight.detach().diagonal(), torch.ones(4, dtype=F64))
    assert float((model.weight.detach() - s).norm()) < 1e-3


OPEN: list[Manifold] = [*SETS, Correlation()]


def trained(manifold: Manifold, method: Any) -> tuple[Any, Any]:
    """A model after three steps, and its optimizer."""
    model = made(manifold, method, "identity")
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.1)
        if isinstance(method, Trivialization)
        else constraints.optim.RiemannianAdam(model, lr=0.1)
    )
    train(model, optimizer, target(), 3, 0.1)
    return model, optimizer


@methods
@pytest.mark.parametrize("manifold", OPEN, ids=str)
def test_the_life_of_a_model(manifold: Manifold, method: Any) -> None:
    """Copied, saved, loaded, rebased, averaged, assigned, converted, exported: the weight stays, and is a point."""
    model, optimizer = trained(manifold, method)
    weight = model.weight.detach().clone()
    assert torch.equal(copy.deepcopy(model).weight, weight)

    other = made(manifold, method, "identity")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.weight, weight)

    rebase(model, optimizer)
    assert torch.allclose(model.weight, weight, rtol=1e-12, atol=1e-14)
    train(model, optimizer, target(), 3, 0.1)
    assert report(model)[0].ok

    plain = Point(4, 4)
    plain.load_state_dict(export_state_dict(model))
    assert torch.allclose(plain.weight, model.weight, rtol=1e-12, atol=1e-14)
    other = made(manifold, method, "identity")
    other.load_state_dict(plain.state_dict())
    assert torch.allclose(other.weight, model.weight, rtol=1e-12, atol=1e-14)

    averaged = AveragedModel(model)
    for _ in range(3):
        train(model, optimizer, target(), 1, 0.1)
        averaged.update_parameters(model)
    assert report(averaged)[0].ok

    single = copy.deepcopy(model).float()
    assert single.weight.dtype is torch.float32
    assert report(single)[0].ok


@methods
def test_an_optimum_of_condition_1e8_is_found_under_the_affine_invariant_metric(method: Any) -> None:
    """In which it is a distance of 20 from the identity, and otherwise like any other."""
    s = target(high=0, low=-8)
    model = made(PositiveDefinite(), method, "identity")
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.2)
        if isinstance(method, Trivialization)
        else constraints.optim.RiemannianAdam(model, lr=0.2)
    )
    train(model, optimizer, (s + s.mT) / 2, 400, 0.2)
    assert report(model)[0].ok
    assert float(PositiveDefinite().distance(model.weight.detach(), s)) < 1e-2


WAYS = {
    "trivialized, Adam": (Trivialization(), lambda p, lr: torch.optim.Adam(p, 3 * lr)),
    "trivialized, momentum": (Trivialization(), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "RiemannianAdam": (Riemannian(), lambda p, lr: constraints.optim.RiemannianAdam(p, 3 * lr)),
    "RiemannianSGD, momentum": (Riemannian(), lambda p, lr: constraints.optim.RiemannianSGD(p, lr, momentum=0.9)),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("n", "lr", "count"), [(3, 0.05, 200), (6, 0.05, 200), (3, 10, 25), (6, 300, 25), (6, 1e6, 25)]
)
@pytest.mark.parametrize("manifold", [m for m in EVERY if m.dim((3, 3))], ids=str)
def test_what_leads_to_the_edge_never_leaves_in_silence(
    manifold: Any, n: int, lr: float, count: int, way: str, dtype: torch.dtype
) -> None:
    """A linear loss has its least value at an edge, or at infinity: each weight on the way is a point, or an error; at
    rates that are far too large, too."""
    method, kind = WAYS[way]
    generator = torch.Generator().manual_seed(0)
    module: Any = Point(n, n, dtype=dtype)
    constrain(module, "weight", manifold, method, init=manifold.random(n, n, generator=generator, dtype=dtype))
    cost = torch.randn(n, n, generator=generator, dtype=dtype)
    optimizer = kind(module if "Riemannian" in way else module.parameters(), lr)
    with contextlib.ExitStack() as steps:
        steps.enter_context(pytest.raises(ValueError, match=r"so long|no value|or not finite|too large"))
        for _ in range(count):
            optimizer.zero_grad()
            (cost * module.weight).sum().backward()
            optimizer.step()
            assert manifold.contains(module.weight.detach()).all()
        steps.pop_all()
