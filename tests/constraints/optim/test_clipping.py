"""Clipping sees the norm along the manifolds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from constraints import Riemannian, constrain, param_groups
from constraints.optim import RiemannianSGD, clip_riemannian_grad_norm_
from manifolds import Euclidean, Sphere, Stiefel


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 3)).double()
    constrain(made, "0.weight", Stiefel("canonical") ** 2 * Euclidean, Riemannian())
    constrain(made, "1.weight", Sphere, Riemannian())
    made(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
    return made


def gradients(made: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in made.parameters() if p.grad is not None]


def norm_along(made: nn.Sequential) -> torch.Tensor:
    """From the definitions, factor by factor."""
    total = torch.zeros((), dtype=torch.float64)
    for group in param_groups(made):
        for _, p in group["params"]:
            manifold = group["manifold"]
            if manifold is None:
                total += p.grad.square().sum()
            elif isinstance(manifold, Sphere):
                total += manifold.norm(p, manifold.gradient(p, p.grad)).square().sum()
            else:
                for factor, x, g in zip(manifold.factors, manifold.unpack(p), manifold.unpack(p.grad), strict=True):
                    total += factor.norm(x, factor.gradient(x, g)).square().sum()
    return total.sqrt().detach()


@pytest.mark.parametrize("how", ["module", "optimizer", "groups"])
def test_the_norm_is_that_along_the_manifolds(how: str) -> None:
    """It is given as it was; after it, it is max_norm, and every gradient has kept its direction."""
    made = model()
    before, along = gradients(made), norm_along(made)
    params: Any = {"module": made, "optimizer": RiemannianSGD(made), "groups": param_groups(made)}[how]
    given = clip_riemannian_grad_norm_(params, 0.25)
    torch.testing.assert_close(given.double(), along, rtol=1e-6, atol=0)
    assert float(along) < float(torch.nn.utils.get_total_norm(before))
    torch.testing.assert_close(norm_along(made), torch.tensor(0.25, dtype=torch.float64), rtol=1e-12, atol=0)
    for g, h in zip(gradients(made), before, strict=True):
        torch.testing.assert_close(g, h * (0.25 / along), rtol=1e-12, atol=0)


def test_what_is_short_stays_as_it_is() -> None:
    made = model()
    before = gradients(made)
    clip_riemannian_grad_norm_(made, 1e6)
    torch.testing.assert_close(gradients(made), before, rtol=0, atol=0)


def test_a_gradient_normal_to_the_manifold_is_not_clipped() -> None:
    """torch's clip would make the other one a millionth."""
    x = nn.Parameter(Stiefel().random(4, 4, dtype=torch.float64))
    free = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    x.grad, free.grad = 1e6 * x.detach(), torch.ones(2, dtype=torch.float64)
    clip_riemannian_grad_norm_([{"params": [x], "manifold": Stiefel}, {"params": free}], 2.0)
    torch.testing.assert_close(free.grad, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = nn.Parameter(Stiefel().random(5, 3, dtype=torch.complex64 if dtype.is_complex else None).to(dtype))
    x.grad = torch.randn(5, 3, dtype=dtype, generator=torch.Generator().manual_seed(7))
    groups = [{"params": [x], "manifold": Stiefel()}]
    clip_riemannian_grad_norm_(groups, 0.5)
    eps = torch.finfo(dtype).eps
    assert abs(float(clip_riemannian_grad_norm_(groups, 1.0)) - 0.5) < 4 * eps
    assert x.grad.dtype == dtype


def test_what_is_no_number_is_an_error_if_asked_for() -> None:
    made = model()
    first = next(made.parameters())
    assert first.grad is not None
    first.grad[0, 0] = torch.nan
    before = gradients(made)[1:]
    with pytest.raises(RuntimeError, match="not finite"):
        clip_riemannian_grad_norm_(made, 1.0, error_if_nonfinite=True)
    torch.testing.assert_close(gradients(made)[1:], before, rtol=0, atol=0)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="max_norm"):
        clip_riemannian_grad_norm_(model(), -1.0)
    for params in (list(model().parameters()), nn.Parameter(torch.ones(2))):
        with pytest.raises(TypeError, match="Pass the module"):
            clip_riemannian_grad_norm_(params, 1.0)  # type: ignore[arg-type]
    assert float(clip_riemannian_grad_norm_(nn.Linear(2, 2), 1.0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("manifold", [None, Stiefel(), Sphere()], ids=str)
def test_long_gradients_are_clipped_and_not_lost(manifold: Any, dtype: torch.dtype) -> None:
    """A norm and a factor that the dtype of the gradient cannot hold: the direction stays, and the norm is max_norm."""
    start = (manifold or Sphere()).random(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = nn.Parameter(start.to(dtype))
    long = {torch.float16: 6e4, torch.float64: 1e100}.get(dtype, 1e15)
    g = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3) * long
    p.grad = g.to(dtype, copy=True)
    total = clip_riemannian_grad_norm_([{"params": [p], "manifold": manifold}], 1e-2)
    along = g if manifold is None else manifold.gradient(start, g)
    torch.testing.assert_close(total.double(), along.norm(), rtol=2e-2, atol=0)
    rounded = p.grad.real.double() if dtype.is_complex else p.grad.double()
    torch.testing.assert_close(rounded, g * (1e-2 / along.norm()), rtol=2e-2, atol=1e-6)
