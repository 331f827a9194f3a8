"""Sets that the library does not have, written as docs/write-a-manifold.md says: the contract, engines, solvers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, minimize, report
from constraints.optim import RiemannianAdam
from manifolds import Manifold
from manifolds.testing import check_manifold

F64 = torch.float64


@dataclass(frozen=True)
class Generalized(Manifold):
    """{X : X^H B X = I} for B = diag(weights) > 0: closed, but with no formula for the nearest point."""

    weights: tuple[float, ...]

    ndim = 2

    def _b(self, x: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=x.dtype, device=x.device)[:, None] * x

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """A - B X S with X^H B^2 X S + S X^H B^2 X = X^H B A + A^H B X."""
        bx = self._b(x)
        values, q = torch.linalg.eigh(bx.mH @ bx)
        c = q.mH @ (bx.mH @ a + a.mH @ bx) @ q
        return a - bx @ (q @ (c / (values[..., :, None] + values[..., None, :])) @ q.mH)

    def residual(self, x: Tensor) -> Tensor:
        gram = x.mH @ self._b(x)
        return (gram - torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)).abs().amax((-2, -1))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """Y L^-H with L L^H = Y^H B Y, Y = X + V; column by column in memory."""
        y = x + v
        factor = torch.linalg.cholesky(y.mH @ self._b(y))
        solved: Tensor = torch.linalg.solve_triangular(factor.mH, y, upper=True, left=False)
        return solved

    def random(self, *shape: Any, generator: Any = None, dtype: Any = None, device: Any = None) -> Tensor:
        a = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
        x = self.retract(a, 0 * a)  # and again, as the square of the condition of a Gaussian is lost
        return self.retract(x, 0 * x)

    def dim(self, shape: Sequence[int]) -> int:
        *batch, n, p = shape
        if n != len(self.weights) or p > n:
            raise ValueError(f"a point is ({len(self.weights)}, p) with p <= {len(self.weights)}; got {tuple(shape)}.")
        return math.prod(batch) * (n * p - p * (p + 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """2 n p - p^2: of a Hermitian equation the diagonal is real."""
        return 2 * self.dim(shape) + math.prod(shape) // shape[-2]


@dataclass(frozen=True)
class DualQuaternions(Manifold):
    """{(q, d) in R^8 : |q| = 1, <q, d> = 0}: rigid motions, real only, closed and not compact."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """Less what is along (q, 0) and (d, q), which are at a right angle."""
        q, d = x.chunk(2, -1)
        for normal in (torch.cat([q, 0 * q], -1), torch.cat([d, q], -1)):
            a = a - (normal * a).sum(-1, keepdim=True) / (normal * normal).sum(-1, keepdim=True) * normal
        return a

    def residual(self, x: Tensor) -> Tensor:
        q, d = x.chunk(2, -1)
        return torch.maximum(((q * q).sum(-1) - 1).abs(), (q * d).sum(-1).abs())

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        q, d = (x + v).chunk(2, -1)
        q = q / q.norm(dim=-1, keepdim=True)
        return torch.cat([q, d - (q * d).sum(-1, keepdim=True) * q], -1)

    def random(self, *shape: Any, generator: Any = None, dtype: Any = None, device: Any = None) -> Tensor:
        a = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
        return self.retract(a, 0 * a)

    def dim(self, shape: Sequence[int]) -> int:
        if shape[-1] != 8:
            raise ValueError(f"a point has 8 entries; got {tuple(shape)}.")
        return 6 * math.prod(shape[:-1])


WEIGHTS = (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("shape", [(4, 2), (2, 4, 3)], ids=str)
def test_the_generalized_stiefel_manifold_keeps_the_contract(shape: tuple[int, ...]) -> None:
    """Its points are not contiguous, which is nobody's business."""
    assert not Generalized(WEIGHTS).random(4, 2).is_contiguous()
    check_manifold(Generalized(WEIGHTS), shape)


def test_dual_quaternions_keep_the_contract() -> None:
    check_manifold(DualQuaternions, (2, 8), dtype=(torch.float32, F64))


def test_generalized_eigenvalues_are_those_of_scipy() -> None:
    a = torch.randn(4, 4, dtype=F64)
    a = a @ a.T
    found = minimize(lambda x: -(x * (a @ x)).sum(), (4, 2), Generalized(WEIGHTS), dtype=F64, tol=1e-10)
    expected = scipy.linalg.eigh(a.numpy(), np.diag(WEIGHTS), eigvals_only=True)
    assert found.converged, found.reason
    assert found.value == pytest.approx(-expected[-2:].sum(), rel=1e-12)


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
def test_both_engines_hold_it(method: Any) -> None:
    linear = constrain(nn.Linear(2, 4), "weight", Generalized(WEIGHTS), method, init="haar")
    target, optimizer = torch.randn(4, 2), RiemannianAdam(linear, lr=1e-2)
    first = float((linear.weight - target).detach().square().sum())
    for _ in range(30):
        optimizer.zero_grad()
        (linear.weight - target).square().sum().backward()
        optimizer.step()
    assert report(linear)[0].ok
    assert float((linear.weight - target).detach().square().sum()) < first
