"""The mean of points along geodesics, by its first-order condition and by closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from manifolds import Euclidean, GeodesicManifold, Manifold, Sphere


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
    ],
)
def test_what_has_no_mean_is_refused(shape: tuple[int, ...], weights: torch.Tensor | None, message: str) -> None:
    x = torch.eye(3).repeat(2, 1)[: shape[0]] if len(shape) == 2 else torch.eye(3)[0]
    with pytest.raises(ValueError, match=message):
        Sphere().mean(x, weights)


def test_points_that_are_not_finite_have_no_mean_and_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, log = 0, Sphere.log

    def counted(m: Sphere, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return log(m, x, y)

    monkeypatch.setattr(Sphere, "log", counted)
    x = Sphere().random(5, 3)
    x[2] = math.nan
    with pytest.raises(RuntimeError, match="not finite"):
        Sphere().mean(x)
    assert steps == 1


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
