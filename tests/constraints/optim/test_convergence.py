"""Problems with a known optimum: each optimizer reaches it with each retraction, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Stiefel, retractions
from manifolds.retractions import Retraction

Loss = Callable[[Tensor], Tensor]
RETRACTIONS = [retractions.cayley, retractions.exp, retractions.qr, retractions.polar]
STEPS = 400


@pytest.fixture
def pca() -> tuple[Tensor, Loss, float]:
    """(start, loss, least loss): the negative variance that 5 orthonormal directions explain, of 200. The sixth
    explains two thirds of the fifth, for how fast it goes depends on that gap."""
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64))[0]
    variances = torch.cat([torch.linspace(0.1, 20, 195), torch.tensor([30.0, 33, 36, 39, 42])]).double()
    covariance = basis @ variances.diag() @ basis.mT
    least = -float(variances[-5:].sum())
    return torch.linalg.qr(torch.randn(200, 5, dtype=torch.float64))[0], lambda x: -(x * (covariance @ x)).sum(), least


@pytest.fixture
def procrustes() -> tuple[Tensor, Loss, float]:
    """(start, loss, least loss): |A X - B|^2 over X in O(50), whose minimum is the polar factor of A^T B."""
    a = torch.randn(80, 50, dtype=torch.float64)
    b = a @ torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0] + 0.3 * torch.randn(
        80, 50, dtype=torch.float64
    )
    u, _, vh = torch.linalg.svd(a.mT @ b)
    start = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0]
    # no path on O(n) leads from one sign of the determinant to the other
    start[:, 0] *= torch.linalg.det(start) * torch.linalg.det(u @ vh)
    return start, lambda x: (a @ x - b).square().sum(), float((a @ u @ vh - b).square().sum())


def relative_gap(optimizer: torch.optim.Optimizer, x: Tensor, loss: Loss, least: float, decay: bool) -> float:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) if decay else None
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return (float(loss(x.detach())) - least) / abs(least)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(("problem", "lr"), [("pca", 0.01), ("procrustes", 0.05)])
def test_adam_reaches_the_optimum(
    request: pytest.FixtureRequest, problem: str, lr: float, retraction: Retraction
) -> None:
    """A relative 1e-6 of the closed-form minimum."""
    start, loss, least = request.getfixturevalue(problem)
    x = torch.nn.Parameter(start)
    optimizer = RiemannianAdam([{"params": [x], "manifold": Stiefel(retraction=retraction)}], lr=lr)
    assert abs(relative_gap(optimizer, x, loss, least, decay=True)) < 1e-6


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(("problem", "lr"), [("pca", 0.02), ("procrustes", 1e-3)])
def test_sgd_reaches_the_optimum(
    request: pytest.FixtureRequest, problem: str, lr: float, retraction: Retraction
) -> None:
    """A relative 1e-6 of the closed-form minimum, at a constant rate."""
    start, loss, least = request.getfixturevalue(problem)
    x = torch.nn.Parameter(start)
    optimizer = RiemannianSGD([{"params": [x], "manifold": Stiefel(retraction=retraction)}], lr=lr, momentum=0.9)
    assert abs(relative_gap(optimizer, x, loss, least, decay=False)) < 1e-6


def test_sgd_without_momentum_descends() -> None:
    """x <- R_x(-lr grad) with a small lr lowers the loss at every step, by lr |grad|^2 to first order."""
    target, manifold = torch.randn(12, 4, dtype=torch.float64), Stiefel()
    x = torch.nn.Parameter(manifold.random(12, 4, dtype=torch.float64))
    optimizer = RiemannianSGD([{"params": [x], "manifold": manifold}], lr=1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        before = (x - target).square().sum()
        before.backward()
        assert x.grad is not None
        slope = manifold.project(x.detach(), x.grad).square().sum()
        optimizer.step()
        torch.testing.assert_close(
            before.detach() - (x.detach() - target).square().sum(), 1e-5 * slope, rtol=1e-3, atol=0
        )
