"""Decoupled decay: where it acts, and what is said where it does not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, param_groups
from constraints.optim import RiemannianAdam, RiemannianAdamW
from manifolds import Euclidean, Manifold, NearestPointManifold, Positive, PositiveDefinite, Sphere, Stiefel


@dataclass(frozen=True)
class Line(NearestPointManifold):
    """{t (1, 1)} in the plane: flat, and its points have all norms."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a.mean(-1, keepdim=True).expand_as(a)

    def nearest(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True).expand_as(x)

    def dim(self, shape: Any) -> int:
        return int(torch.Size(shape[:-1]).numel())


def test_decay_goes_along_the_manifold() -> None:
    """Without a gradient x <- (1 - lr lambda) x on a linear set, a factor of a product as well as alone."""
    x = nn.Parameter(torch.full((3, 2), 2.0, dtype=torch.float64))
    x.grad = torch.zeros_like(x)
    optimizer = RiemannianAdamW([{"params": [x], "manifold": Line()}], lr=0.1, weight_decay=0.5)
    for _ in range(4):
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.full_like(x, 2.0 * 0.95**4), rtol=1e-14, atol=0)


def test_decay_is_that_of_each_factor() -> None:
    """Of Stiefel * Euclidean: none, and AdamW's."""
    manifold = Stiefel * Euclidean
    w = nn.Parameter(torch.cat([Stiefel().random(3, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)]))
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    with pytest.warns(UserWarning, match="weight_decay does nothing on Stiefel, where all points have one norm"):
        optimizer = RiemannianAdamW([{"params": [w], "manifold": manifold}], lr=0.1, weight_decay=0.5)
    optimizer.step()
    torch.testing.assert_close(w.detach()[:3], before[:3], rtol=0, atol=1e-15)
    torch.testing.assert_close(w.detach()[3:], 0.95 * before[3:], rtol=1e-15, atol=0)


def test_it_is_said_once_and_only_of_what_was_asked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, ["0.weight", "1.weight"], Stiefel, Riemannian())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RiemannianAdamW(model)
        RiemannianAdam(model, decoupled_weight_decay=True)
        groups = param_groups(model)
        for group in groups:
            group["weight_decay"] = 0.0 if group["manifold"] is not None else 0.3
        RiemannianAdamW(groups)  # the way out of the warning
    apart = [{"params": [model[i].weight], "manifold": Stiefel} for i in (0, 1)]
    with pytest.warns(UserWarning, match="weight_decay does nothing") as said:
        RiemannianAdamW(apart, weight_decay=0.3)
    assert len(said) == 1


def test_coordinates_are_not_decayed() -> None:
    """param_groups leaves decay out of a trivialization's coordinates."""
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    before = linear.weight.detach().clone()
    optimizer = RiemannianAdamW(linear, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
    torch.testing.assert_close(linear.weight.detach(), before, rtol=0, atol=1e-6)


def test_what_is_loaded_is_decoupled() -> None:
    """State of an Adam goes on with the decay of AdamW, as in torch."""
    x = nn.Parameter(Sphere().random(5, 3))
    x.grad = torch.ones_like(x)
    old = RiemannianAdam([{"params": [x], "manifold": Sphere}])
    old.step()
    optimizer = RiemannianAdamW([{"params": [x], "manifold": Sphere}])
    optimizer.load_state_dict(old.state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_decay_in_a_batch_of_points_with_their_own_sizes() -> None:
    """One second moment a point: decay is added to each."""
    w = nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    v = nn.Parameter(w.detach().clone())
    g = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = RiemannianAdamW([{"params": [w], "manifold": Line()}], lr=0.1, weight_decay=0.5)
    plain = RiemannianAdamW([{"params": [v], "manifold": Line()}], lr=0.1, weight_decay=0.0)
    w.grad, v.grad = g.clone(), g.clone()
    ours.step()
    plain.step()
    torch.testing.assert_close(w.detach(), v.detach() - 0.05, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("manifold", [Positive(), PositiveDefinite(), PositiveDefinite("bures-wasserstein")], ids=str)
def test_decay_takes_the_same_part_of_a_point_of_any_size(manifold: Manifold, scale: float) -> None:
    """x - lr lambda x to first order, in every metric; the gradient of |x|^2 / 2 grows with x^2 and more."""
    x = scale * (torch.eye(3, dtype=torch.float64) + 0.1 * torch.ones(3, 3, dtype=torch.float64))
    p = torch.nn.Parameter(x.clone())
    optimizer = RiemannianAdamW([{"params": [p], "manifold": manifold}], lr=1e-2, weight_decay=0.1)
    p.grad = torch.zeros_like(p)
    for _ in range(10):
        optimizer.step()
    torch.testing.assert_close(p.detach(), x * (1 - 1e-3) ** 10, rtol=1e-4, atol=0)
