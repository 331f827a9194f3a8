"""Hyperbolic space: one model against the other, geoopt where it is right, and many digits near the boundary."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import BlockSpec, GeodesicManifold, Hyperboloid, Manifold, PoincareBall, ProductManifold, Sphere
from manifolds.engine import Engine, engine
from manifolds.kernels import ball
from manifolds.testing import check_manifold

F64 = torch.float64
REAL = (torch.float32, F64)
EPS = torch.finfo(F64).eps
curvatures = pytest.mark.parametrize("k", [-1.0, -0.5, -3.0])


def drawn(manifold: Manifold, count: int, n: int, seed: int = 0) -> Tensor:
    return manifold.random(count, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def to_ball(x: Tensor, k: float) -> Tensor:
    """R x_s / (R + x_0)."""
    r = (-k) ** -0.5
    y: Tensor = r * x[..., 1:] / (r + x[..., :1])
    return y


def pushed(x: Tensor, v: Tensor, k: float) -> Tensor:
    """The derivative of `to_ball`."""
    r = (-k) ** -0.5
    w: Tensor = r * v[..., 1:] / (r + x[..., :1]) - r * x[..., 1:] * v[..., :1] / (r + x[..., :1]) ** 2
    return w


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (PoincareBall(), (4,)),
        (PoincareBall(-0.5), (2, 2)),
        (PoincareBall(), (1,)),
        (Hyperboloid(), (4,)),
        (Hyperboloid(-2.0), (2, 2)),
        (PoincareBall() ** 2, (6,)),
        (ProductManifold((Hyperboloid(), Sphere()), BlockSpec(rows=2, axis=-1)), (2, 6)),
    ],
    ids=str,
)
def test_the_contract(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape, dtype=REAL)


@curvatures
def test_the_two_models_are_isometric(k: float) -> None:
    m, ball = Hyperboloid(k), PoincareBall(k)
    x, y = drawn(m, 2, 5)
    u, v = (m.random_tangent(x, torch.Generator().manual_seed(s)) for s in (1, 2))
    a, b, du, dv = to_ball(x, k), to_ball(y, k), pushed(x, u, k), pushed(x, v, k)
    for here, there in (
        (m.inner(x, u, v), ball.inner(a, du, dv)),
        (m.distance(x, y), ball.distance(a, b)),
        (to_ball(m.exp(x, v), k), ball.exp(a, dv)),
        (to_ball(m.retract(x, v), k), ball.retract(a, dv)),
        (pushed(x, m.log(x, y), k), ball.log(a, b)),
        (pushed(y, m.transport(x, y, v), k), ball.transport(a, b, dv)),
    ):
        torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of the other library
@curvatures
def test_inside_they_are_those_of_geoopt(k: float) -> None:
    geoopt = pytest.importorskip("geoopt")
    ball, theirs = PoincareBall(k), geoopt.PoincareBall(c=torch.tensor(-k, dtype=F64))
    x, y = drawn(ball, 2, 4) * 0.8
    u, v = torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    pairs = [
        (ball.inner(x, u, v), theirs.inner(x, u, v)),
        (ball.gradient(x, u), theirs.egrad2rgrad(x, u)),
        (ball.distance(x, y), theirs.dist(x, y)),
        (ball.exp(x, v / 4), theirs.expmap(x, v / 4)),
        (ball.log(x, y), theirs.logmap(x, y)),
        (ball.transport(x, y, v), theirs.transp(x, y, v)),
    ]
    if k == -1.0:  # elsewhere its Lorentz has another curvature than it is given
        m, theirs = Hyperboloid(), geoopt.Lorentz()
        x, y = drawn(m, 2, 4)
        v = m.random_tangent(x, torch.Generator().manual_seed(1))
        pairs += [
            (m.inner(x, v, v), theirs.inner(x, v, v)),
            (m.distance(x, y), theirs.dist(x, y)),
            (m.exp(x, v), theirs.expmap(x, v)),
            (m.log(x, y), theirs.logmap(x, y)),
            (m.gradient(x, u), theirs.egrad2rgrad(x, u)),
        ]
    for ours, other in pairs:
        torch.testing.assert_close(ours, other.reshape(ours.shape), rtol=1e-9, atol=1e-9)


def exact_distance(x: Tensor, y: Tensor) -> float:
    """arcosh(1 + 2 |x - y|^2 / ((1 - |x|^2)(1 - |y|^2))), with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        a, b = ([Decimal(float(t)) for t in z] for z in (x, y))
        apart = sum(((s - t) ** 2 for s, t in zip(a, b, strict=True)), Decimal(0))
        rest = (1 - sum((s * s for s in a), Decimal(0))) * (1 - sum((t * t for t in b), Decimal(0)))
        z = 1 + 2 * apart / rest
        return float((z + (z * z - 1).sqrt()).ln())


def test_distances_within_1e_5_of_the_boundary_are_right_to_1e_6() -> None:
    """Of points as far apart as can be, and of near ones, across and along the radius."""
    ball = PoincareBall()
    x = torch.tensor([0.6, 0.8, 0.0], dtype=F64) * (1 - 1e-5)
    for y in (
        -x,
        torch.zeros(3, dtype=F64),
        torch.tensor([0.8, 0.6, 0.0], dtype=F64) * (1 - 1e-5),
        x + torch.tensor([0.0, 0.0, 1e-8], dtype=F64),
        x * (1 - 1e-9),
        x * (1 + 5e-6),
        x * (1 - 1e-14),
    ):
        assert float(ball.distance(x, y)) == pytest.approx(exact_distance(x, y), rel=1e-6)
        assert float(ball.norm(x, ball.log(x, y))) == pytest.approx(exact_distance(x, y), rel=1e-6)
        there = ball.exp(x, ball.log(x, y))
        assert float(ball.distance(there, y)) < 1e-5  # a direction that is off by eps ends eps sinh(24) away
    assert float(ball.distance(x, x)) == 0


def test_far_points_of_the_hyperboloid_keep_their_digits() -> None:
    """At distance 12 of the origin, 1 - tanh(6) = 1e-5; <x, y> alone would leave six digits of a distance of 1e-3."""
    m = Hyperboloid()
    x, y = (torch.tensor([math.cosh(r), math.sinh(r), 0.0], dtype=F64) for r in (12.0, 12.001))
    assert float(m.distance(x, y)) == pytest.approx(0.001, rel=1e-6)
    assert float(m.distance(x, torch.tensor([1.0, 0.0, 0.0], dtype=F64))) == pytest.approx(12.0, rel=4 * EPS)
    v = torch.tensor([math.sinh(12.0), math.cosh(12.0), 0.0], dtype=F64)
    assert float(m.norm(x, v)) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("manifold", [PoincareBall(), PoincareBall(-2.0), Hyperboloid(), Hyperboloid(-0.5)], ids=str)
def test_transport_is_an_isometry_that_carries_the_velocity_along(manifold: GeodesicManifold) -> None:
    x, y = drawn(manifold, 2, 4)
    v = manifold.random_tangent(x, torch.Generator().manual_seed(1))
    w = manifold.transport(x, y, v)
    assert float(manifold.norm(y, w)) == pytest.approx(float(manifold.norm(x, v)), rel=1e-12)
    torch.testing.assert_close(manifold.transport(x, y, manifold.log(x, y)), -manifold.log(y, x))


def test_transport_near_the_boundary_is_a_rotation() -> None:
    """Of h v, to rounding, for points near to each other and far."""
    ball = PoincareBall()
    x = torch.tensor([0.6, 0.8], dtype=F64) * (1 - 1e-9)
    v = torch.tensor([1e-9, 2e-9], dtype=F64)
    for y in (x + torch.tensor([1e-10, 0.0], dtype=F64), -x, torch.zeros(2, dtype=F64)):
        ratio = ball.norm(y, ball.transport(x, y, v)) / ball.norm(x, v)
        assert float(ratio) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("manifold", [PoincareBall(), PoincareBall(-0.3), Hyperboloid()], ids=str)
def test_no_step_leaves_the_set(manifold: GeodesicManifold, dtype: torch.dtype) -> None:
    """Outwards, again and again; then back, to where a step of that length is seen."""
    x = manifold.random(3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    v = manifold.random_tangent(x, torch.Generator().manual_seed(1))
    for _ in range(12 if isinstance(manifold, Hyperboloid) else 60):
        y = manifold.retract(x, 4 * v / manifold.norm(x, v))
        assert bool(manifold.contains(y))
        v, x = manifold.project(y, manifold.transport(x, y, v)), y
        assert bool(v.isfinite().all())
    if isinstance(manifold, PoincareBall):
        assert bool(manifold.contains(manifold.retract(x, -v / manifold.norm(x, v))))
        assert bool(manifold.gradient(x, v).isfinite().all())


@pytest.mark.parametrize("kind", [PoincareBall, Hyperboloid])
def test_a_curvature_is_a_negative_number(kind: Any) -> None:
    for wrong in (0, 1.0, -math.inf, math.nan, True, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match=f"the curvature of {kind.__name__} is a negative number"):
            kind(wrong)
    assert kind(-2) == kind(-2.0)
    with pytest.raises(ValueError, match="are real; got dtype"):
        kind().random(3, dtype=torch.complex64)


def test_what_is_no_point_is_told() -> None:
    ball, m = PoincareBall(), Hyperboloid()
    assert ball.residual(torch.tensor([1.0, 0.0])) == torch.inf
    assert ball.residual(torch.tensor([0.6, 0.7])) == 0
    assert PoincareBall(-4.0).residual(torch.tensor([0.6, 0.0])) == torch.inf
    assert m.residual(torch.tensor([-1.0, 0.0])) == torch.inf
    assert m.residual(torch.tensor([1.5, 0.0])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="a timelike entry and one or more others"):
        m.random(4, 1)


def test_a_circle_on_the_ball_is_as_long_as_it_should_be() -> None:
    """2 pi sinh(r), from distances of near points: the metric and the distance belong together."""
    ball = PoincareBall()
    angle = torch.arange(2000, dtype=F64) * (2 * math.pi / 2000)
    points = math.tanh(1.0) * torch.stack([angle.cos(), angle.sin()], -1)
    length = ball.distance(points, points.roll(1, 0)).sum()
    assert float(length) == pytest.approx(2 * math.pi * math.sinh(2.0), rel=1e-4)


def cloud(k: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """1,000 points, some of them near the boundary, with two tensors of their shape."""
    generator = torch.Generator().manual_seed(0)
    x, c, g = torch.randn(3, 1000, 6, generator=generator, dtype=F64)
    depths = 10 ** torch.linspace(-3, 0, 1000, dtype=F64)  # of 1 - |x| / R
    x = x / x.norm(dim=-1, keepdim=True) * (1 - 0.99 * depths[:, None]) * (-k) ** -0.5
    return x.to(dtype), c.to(dtype), g.to(dtype)


@curvatures
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [0.0, -1e-3, 0.1, 30.0, "one a point", math.nan])
def test_one_pass_of_a_step_is_the_step(k: float, dtype: torch.dtype, size: Any, monkeypatch: Any) -> None:
    """mix and travel are the plain ones in float64, whatever the size of the chunks and of the steps."""
    monkeypatch.setattr(ball, "CHUNK", 64 * 6 * dtype.itemsize)  # chunks of 64 points, the last one of 40
    manifold, (x, c, g) = PoincareBall(k), cloud(k, dtype)
    e = engine(manifold)
    exact_x, exact_c, exact_g = x.double(), c.double(), g.double()
    if size == "one a point":
        size = torch.linspace(-0.5, 0.5, 1000, dtype=dtype)[:, None]
        size[777] = 100  # a long step, in a chunk of short ones
    kept = c.clone()
    y, stored = e.travel(x, kept, size)
    exact_y = e.advance(exact_x, exact_c, size if isinstance(size, float) else size.double())
    eps, r, short = torch.finfo(dtype).eps, (-k) ** -0.5, isinstance(size, float) and abs(size) < 1  # no chunk is plain
    torch.testing.assert_close(y.double(), exact_y, rtol=0, atol=8 * eps * r, equal_nan=True)
    if dtype == F64 or short:  # long ones are plain, and lose digits near the boundary
        expected = e.store(exact_x, exact_y, exact_c)
        # |c| < 5, and 1 - |x|^2 / R^2 > 2e-3: the plain one, which goes by the rounded y, is off by eps over that
        atol = 5 * 4 * (eps / 2e-3 if dtype == F64 else eps)
        torch.testing.assert_close(stored.double(), expected, rtol=0, atol=atol, equal_nan=True)
    mixed, square = e.mix(x, c.clone(), g, 0.9, 0.1)
    expected, expected_square = Engine.mix(e, exact_x, exact_c.clone(), exact_g, 0.9, 0.1)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=16 * eps)
    torch.testing.assert_close(square.double(), expected_square, rtol=0, atol=64 * eps)


@pytest.mark.parametrize("inference", [False, True])
def test_what_mix_has_found_of_points_serves_these_points_only(inference: bool, monkeypatch: Any) -> None:
    """travel at the points of the last mix, at others, and at the same ones written to in between."""
    monkeypatch.setattr(ball, "CHUNK", 64 * 6 * 8)
    e = engine(PoincareBall())
    with torch.inference_mode(inference):
        x, c, g = (t.clone() for t in cloud(-1.0, F64))
        for change in (lambda: None, lambda: x.mul_(0.5)):
            e.mix(x, c.clone(), g, 0.9, 0.1)
            change()
            found = e.travel(x, c.clone(), 0.1)
            expected = e.travel(x, c.clone(), 0.1)  # which has no mix before it
            e.mix(0.3 * x, c.clone(), g, 0.9, 0.1)
            assert all(map(torch.equal, found, expected))
            assert all(map(torch.equal, e.travel(x, c.clone(), 0.1), expected))


def test_the_carried_vector_keeps_its_length_near_the_boundary() -> None:
    x, c, _ = cloud(-1.0, torch.float32)
    _, stored = engine(PoincareBall()).travel(x, c.clone(), 1e-2)
    error = (stored.double().norm(dim=-1) / c.double().norm(dim=-1) - 1).abs().max()
    assert float(error) < 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", REAL)
def test_points_that_reach_the_boundary_stay_inside_in_one_pass(dtype: torch.dtype) -> None:
    manifold = PoincareBall()
    x, _, _ = cloud(-1.0, dtype)
    x = x / x.norm(dim=-1, keepdim=True) * (1 - 20 * torch.finfo(dtype).eps)
    c = x.clone()
    for _ in range(5):
        x, c = engine(manifold).travel(x, c, 0.5)
        assert bool(manifold.contains(x).all())
        assert bool(c.isfinite().all())


@pytest.mark.parametrize(("dtype", "radius"), [(torch.float32, 30.0), (torch.float64, 300.0)], ids=str)
def test_points_far_from_the_origin_are_as_far_as_they_are(dtype: torch.dtype, radius: float) -> None:
    """On the hyperboloid, whose entries there are e^radius; from the larger point all digits would cancel."""
    m, origin = Hyperboloid(), torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    x, y = (m.exp(origin, radius * axis) for axis in torch.eye(3, dtype=dtype)[1:])
    few = 8 * torch.finfo(dtype).eps
    for a, b in ((origin, x), (x, origin), (y, origin)):
        assert abs(float(m.distance(a, b)) / radius - 1) <= few
    assert abs(float(m.norm(origin, m.log(origin, x))) / radius - 1) <= few
    # the law of cosines for a right angle: cosh c = cosh^2 radius, c = 2 radius - log 2
    assert abs(float(m.distance(x, y)) / (2 * radius - math.log(2)) - 1) <= few


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geodesics_of_the_ball_stay_in_it(dtype: torch.dtype) -> None:
    m = PoincareBall(-0.25)
    x = m.random(20, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for length in (10, 1e2, 1e4):
        y = m.exp(x, length * m.random_tangent(x, torch.Generator().manual_seed(1)))
        assert bool(m.contains(y).all())
        assert bool(m.distance(x, y).isfinite().all())
