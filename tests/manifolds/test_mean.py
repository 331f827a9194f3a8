"""The mean of points along geodesics, by its first-order condition and by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from manifolds import (
    Euclidean,
    GeodesicManifold,
    Grassmann,
    Hyperboloid,
    Manifold,
    PoincareBall,
    PositiveDefinite,
    Simplex,
    Sphere,
    Stiefel,
)
from tests.sets import GEODESIC


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_the_sphere_is_where_the_logs_balance(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(3, 40, 5, generator=generator, dtype=dtype) + 4 * torch.eye(5, dtype=dtype)[0]
    x, w = Sphere().nearest(near), torch.rand(3, 40, generator=generator, dtype=dtype)
    y = Sphere().mean(x, w)
    assert y.shape == (3, 5)
    pull = (w.unsqueeze(-1) * Sphere().log(y.unsqueeze(1), x)).sum(1) / w.sum(1, keepdim=True)
    assert float(pull.norm(dim=-1).max()) <= 32 * torch.finfo(dtype).eps  # a sum of 40 terms below 1, and its log
    one = torch.stack([Sphere().mean(x[i], w[i]) for i in range(3)])
    torch.testing.assert_close(one, y, rtol=0, atol=64 * torch.finfo(dtype).eps)


def test_the_mean_of_two_points_is_the_middle_of_their_geodesic() -> None:
    x, y = Sphere().random(2, 6, dtype=torch.float64)
    both = torch.stack([x, y])
    t = Sphere().mean(both, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(t, Sphere().geodesic(x, y, 0.75), rtol=0, atol=1e-14)
    torch.testing.assert_close(Sphere().mean(both, torch.tensor([1.0, 0.0])), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        Sphere().geodesic(both, both.flip(0), torch.tensor([0.0, 1.0])), torch.stack([x, x]), rtol=0, atol=1e-14
    )


def test_means_of_products_are_those_of_the_factors() -> None:
    product = Sphere * Euclidean
    assert isinstance(product, GeodesicManifold)
    x = torch.cat([Sphere().nearest(torch.rand(9, 3, dtype=torch.float64)), torch.rand(9, 3, dtype=torch.float64)], -1)
    y = product.mean(x)
    torch.testing.assert_close(y[:3], Sphere().mean(x[:, :3]), rtol=0, atol=1e-14)
    torch.testing.assert_close(y[3:], x[:, 3:].mean(0), rtol=0, atol=1e-14)
    d = product.distance(x[0], x[1])
    parts = Sphere().distance(x[0, :3], x[1, :3]) ** 2 + (x[0, 3:] - x[1, 3:]).square().sum()
    torch.testing.assert_close(d, parts.sqrt(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "weights", "message"),
    [
        ((3,), None, "over the last batch axis"),
        ((0, 3), None, "over the last batch axis"),
        ((4, 3), torch.ones(3), "one number for each"),
        ((4, 3), torch.tensor([1.0, 1.0, -1.0, 1.0]), "nonnegative"),
        ((4, 3), torch.zeros(4), "positive sum"),
        ((4, 3), torch.full((4,), math.nan), "nonnegative"),
        ((4, 3), torch.full((4,), math.inf), "infinite"),
    ],
)
def test_what_has_no_mean_is_refused(shape: tuple[int, ...], weights: torch.Tensor | None, message: str) -> None:
    x = torch.eye(3).repeat(2, 1)[: shape[0]] if len(shape) == 2 else torch.eye(3)[0]
    with pytest.raises(ValueError, match=message):
        Sphere().mean(x, weights)


def test_weights_are_real_numbers_in_a_tensor() -> None:
    for weights in ([1.0, 1.0], torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="a tensor of real numbers"):
            Sphere().mean(torch.eye(3)[:2], weights)  # type: ignore[arg-type]


def short(manifold: Manifold, x: Tensor, v: Tensor) -> Tensor:
    """v, or a part of it, whose geodesic stays on the simplex: it turns 2 sqrt(x) by |v| / 2 <= min sqrt(x) / 2, and an
    entry of sqrt(x) comes to 0 no earlier than at the arc tangent of it."""
    return v * min(1.0, float(x.min().sqrt() / manifold.norm(x, v))) if isinstance(manifold, Simplex) else v


@pytest.mark.parametrize("manifold", GEODESIC, ids=repr)
def test_a_point_without_weight_may_be_anything(manifold: GeodesicManifold) -> None:
    shape = (4, 2) if isinstance(manifold, Stiefel | Grassmann) else (3,) * manifold.ndim
    x = manifold.random(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = short(manifold, x, 0.1 * manifold.random_tangent(x, torch.Generator().manual_seed(1)))
    points = torch.stack([manifold.exp(x, v), torch.full_like(x, math.nan), manifold.exp(x, -v), -x])
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert float(manifold.distance(manifold.mean(points, weights), x)) <= 1e-13
    with pytest.raises(ValueError, match="Give these the weight 0"):
        manifold.mean(points)
    points[1] = x
    assert float(manifold.distance(manifold.mean(points[:3], 1e308 * torch.ones(3, dtype=x.dtype)), x)) <= 1e-13


@pytest.mark.parametrize("manifold", GEODESIC, ids=repr)
def test_the_mean_is_differentiable_where_the_first_point_is_the_mean(manifold: GeodesicManifold) -> None:
    """Of x, exp(x, v) and exp(x, -v), where a descent ends as it begins; once and twice, by finite differences."""
    shape = (4, 2) if isinstance(manifold, Stiefel | Grassmann) else (3,) * manifold.ndim
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(*shape, dtype=torch.float64, generator=generator)
    v = manifold.random_tangent(x, generator)
    v = short(manifold, x, 0.2 * v / manifold.norm(x, v))
    points = torch.stack([x, manifold.exp(x, v), manifold.exp(x, -v)])
    along = torch.stack([manifold.random_tangent(p, generator) for p in points])
    along = torch.stack([short(manifold, p, 0.2 * u / manifold.norm(p, u)) for p, u in zip(points, along, strict=True)])

    def value(t: float | Tensor) -> Tensor:
        """A function of the mean that sees no basis of a subspace."""
        y = manifold.mean(manifold.exp(points, t * along))
        seen = y @ y.mT if isinstance(manifold, Grassmann) else y
        return (seen * torch.linspace(0, 1, seen.numel(), dtype=seen.dtype).view_as(seen)).sum()

    t, h = torch.zeros((), dtype=torch.float64, requires_grad=True), 1e-2
    (first,) = torch.autograd.grad(value(t), t, create_graph=True)
    second = torch.autograd.grad(first, t)[0] if first.requires_grad else torch.zeros(())
    values = [float(value(k * h)) for k in (-2, -1, 0, 1, 2)]
    # of fourth order in steps of 0.002 of the points, and rounding over h^2
    assert abs(first.item() - (8 * (values[3] - values[1]) - values[4] + values[0]) / (12 * h)) <= 1e-8
    twice = (16 * (values[3] + values[1]) - values[4] - values[0] - 30 * values[2]) / (12 * h * h)
    assert abs(second.item() - twice) <= 1e-8


def test_points_that_are_far_apart_have_a_mean() -> None:
    """Three points of a sphere within one hemisphere, no ball of which is small; of hyperbolic space any at all."""
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x = Sphere().random(3, 3, dtype=torch.float64, generator=generator)
        y = Sphere().mean(x)
        assert float(Sphere().log(y, x).mean(0).norm()) <= 1e-12  # of logs as long as 3, near half a turn
        for space in (PoincareBall(), Hyperboloid()):
            v = torch.nn.functional.normalize(torch.randn(8, 4, dtype=torch.float64, generator=generator), dim=-1)
            origin = torch.zeros(4, dtype=torch.float64)
            if isinstance(space, Hyperboloid):
                origin[0] = 1
            x = space.exp(origin, 3 * space.project(origin, v))
            y = space.mean(x)
            assert float(space.norm(y, space.log(y, x).mean(0))) <= 1e-12  # of logs as long as 10


@pytest.mark.parametrize(("dtype", "condition"), [(torch.float32, 1e5), (torch.float64, 1e12)], ids=str)
def test_nearly_singular_matrices_have_an_affine_invariant_mean(dtype: torch.dtype, condition: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(10, 4, 4, dtype=torch.float64, generator=generator)).Q
    x = (q * torch.logspace(0, -math.log10(condition), 4, dtype=torch.float64)) @ q.mT
    x = ((x + x.mT) / 2).to(dtype)
    y = PositiveDefinite().mean(x)
    pull = PositiveDefinite().norm(y, PositiveDefinite().log(y, x).mean(0))
    assert float(pull) <= 1024 * torch.finfo(dtype).eps  # logs of length log(condition), and the root of y


def test_random_tangents_are_gaussian() -> None:
    x = Sphere().random(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = Sphere().random_tangent(x, torch.Generator().manual_seed(2))
    assert float((x * v).sum(-1).abs().max()) < 1e-14
    # 4000 independent squares of mean 1 and variance 2: five standard deviations
    assert abs(float(v.square().sum(-1).mean()) - 2) < 5 * math.sqrt(2 * 2 / 2000)
    both: Manifold = Sphere * Euclidean
    x = both.random(6, dtype=torch.float64)
    w = both.random_tangent(x)
    assert abs(float(w[:3] @ x[:3])) < 1e-14
    assert bool((w[3:] != 0).all())
    assert not torch.equal(w, both.random_tangent(x))
