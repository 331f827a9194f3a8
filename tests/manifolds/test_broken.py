"""check_manifold finds what is broken: one manifold for each way to break the contract, and the lines of its report."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import Euclidean, GeodesicManifold, Manifold, NearestPointManifold, Orthogonal
from manifolds.engine import Engine, engine
from manifolds.testing import ConformanceError, check_manifold
from manifolds.testing._case import within

ROOT = Path(__file__).parent.parent.parent
N = 4  # points have shape (N,)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def unit(a: Tensor) -> Tensor:
    return a / dot(a, a).sqrt()


@dataclass(frozen=True)
class Sound(GeodesicManifold):
    """The real unit sphere, right in every way: each class below breaks one thing of it."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - dot(x, a) * x

    def nearest(self, x: Tensor) -> Tensor:
        return unit(x)

    def dim(self, shape: Any) -> int:
        return int(torch.Size(shape[:-1]).numel()) * (shape[-1] - 1)

    def residual(self, x: Tensor) -> Tensor:
        return (dot(x, x).squeeze(-1).sqrt() - 1).abs()

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        t = dot(v, v).sqrt()
        return t.cos() * x + torch.sinc(t / torch.pi) * v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        w = self.project(x, y - x)
        return w / torch.sinc(self.distance(x, y).unsqueeze(-1) / torch.pi)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * torch.atan2(dot(x - y, x - y).sqrt(), dot(x + y, x + y).sqrt()).squeeze(-1)


BREAKS: dict[type[Manifold], set[str]] = {}


def breaks(*theorems: str) -> Callable[[type], type]:
    """Says which lines the report on this class has: these and no others."""

    def note(cls: type) -> type:
        ready = {"__dataclass_params__", "__setattr__"} & set(vars(cls))
        new = cls if ready else dataclass(frozen=True)(cls)
        BREAKS[new] = set(theorems)
        return new

    return note


# Projection ------------------------------------------------------------------------------------------------


@breaks("project: tangent", "project: idempotent")
class HalfProjection(Sound):
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - dot(x, a) * x / 2


@breaks("project: tangent", "project: rank")
class NoProjection(Sound):
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a


@breaks("project: self-adjoint", "gradient: dual to the metric")
class ObliqueProjection(Sound):
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        e = torch.tensor([2.0, 1.0, 0.0, 1.0], dtype=x.dtype) + 3 * x
        return a - dot(x, a) * e / dot(x, e)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)


@breaks("project: linear")
class NormalizedProjection(Sound):
    """Cuts what it projects to length 1: idempotent and tangent, but not linear."""

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        v = a - dot(x, a) * x
        return v / dot(v, v).sqrt().clamp_min(1)


@breaks("project: rank")
class ThinProjection(Sound):
    """Onto one line of the tangent space."""

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        line = unit(x.roll(1, -1) - dot(x, x.roll(1, -1)) * x)
        return dot(line, a) * line

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)


@breaks("dim: additive")
class DimOfOnePoint(Sound):
    def dim(self, shape: Any) -> int:
        return int(shape[-1]) - 1


@breaks("project: rank")
class DimOfTheSpace(Sound):
    def dim(self, shape: Any) -> int:
        return int(torch.Size(shape).numel())


# Gradient and metric ---------------------------------------------------------------------------------------


@breaks("gradient: dual to the metric")
class DoubleGradient(Sound):
    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return 2 * self.project(x, g)


@breaks("gradient: tangent")
class EuclideanGradient(Sound):
    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g


@breaks("gradient: dual to the metric")
class ForgottenMetric(Sound):
    """A metric of its own, and the gradient of the ambient one."""

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return 3 * (u * v).sum(-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return 3**0.5 * super().distance(x, y)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)


@breaks("gradient: slope of f")
class ClippedGradient(Sound):
    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.project(x, g) / dot(g, g).sqrt().clamp_min(1)


@breaks("inner: symmetric")
class SkewMetric(Sound):
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1) + (u * v.roll(1, -1) - v * u.roll(1, -1)).sum(-1)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.project(x, g)


@breaks("inner: linear")
class MetricOfTheEntries(Sound):
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1) ** 3


@breaks("inner: positive")
class NegativeMetric(Sound):
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return -(u * v).sum(-1)


@breaks("norm: of the metric")
class SquaredNorm(Sound):
    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner(x, 2 * v, v)


# Retraction ------------------------------------------------------------------------------------------------


@breaks("retract: first order")
class OrderZero(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + 2 * v)


@breaks("retract: fixes x", "retract: first order")
class SignFlip(Sound):
    """The sphere as the Stiefel manifold of one column, retracted by QR without a positive diagonal."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.linalg.qr((x + v).unsqueeze(-1)).Q.squeeze(-1)


@breaks("retract: feasible")
class StraightLine(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v


@breaks("retract: feasible")
class OverflowsOnLongSteps(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        size = dot(v, v).sqrt()
        return torch.where(size < 50, unit(x + v), torch.nan)


@breaks("retract: derivative at 0")
class NanAtZero(Sound):
    """exp with sin(t) / t behind a where: right, but its derivative at v = 0 is NaN."""

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        t = dot(v, v).sqrt()
        return torch.where(t > 0, t.cos() * x + t.sin() / t * v, x)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.exp(x, v)


@breaks("retract: derivative at 0", "retract: derivatives")
class Detached(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v.detach())


class HalfBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (v,) = ctx.saved_tensors
        return grad * (1 + dot(v, v)), None


@breaks("retract: derivatives")
class WrongBackward(Sound):
    """Right at v = 0, and wrong elsewhere."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return HalfBackward.apply(unit(x + v), v)  # type: ignore[no-any-return, no-untyped-call]


@breaks("transport: tangent")
class NoTransport(Sound):
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v


@breaks("transport: linear")
class UnitTransport(Sound):
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        w = self.project(y, v)
        return w * dot(v, v).sqrt()


@breaks("transport: identity")
class DoubleTransport(Sound):
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return 2 * self.project(y, v)


# Points ----------------------------------------------------------------------------------------------------


@breaks("nearest: fixes points")
class NearestMoves(Sound):
    def nearest(self, x: Tensor) -> Tensor:
        return unit(x + 0.01 * x.roll(1, -1))


@breaks("nearest: optimal")
class NotNearest(Sound):
    def nearest(self, x: Tensor) -> Tensor:
        return unit(x + (dot(x, x) - 1) * x.roll(1, -1))


@breaks("nearest: feasible")
class NearlyNearest(Sound):
    """One Newton step for the length: good near the sphere, off it from afar."""

    def nearest(self, x: Tensor) -> Tensor:
        return x * (3 - dot(x, x)) / 2

    def random(self, *shape: int, **options: Any) -> Tensor:
        return unit(torch.randn(shape, **options))


@breaks("residual: NaN shows")
class ResidualHidesNan(Sound):
    def residual(self, x: Tensor) -> Tensor:
        return super().residual(x).nan_to_num(0.0)


@breaks("residual: off the manifold", "residual: NaN shows")
class BlindResidual(Sound):
    def residual(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v)


@breaks("random: feasible")
class RandomInSpace(Sound):
    def random(self, *shape: int, **options: Any) -> Tensor:
        return torch.randn(shape, **options)


@breaks("random: seeded")
class IgnoresTheGenerator(Sound):
    def random(self, *shape: int, **options: Any) -> Tensor:
        return unit(torch.randn(shape, dtype=options.get("dtype")))


@breaks("random: seeded")
class AlwaysTheSamePoint(Sound):
    def random(self, *shape: int, **options: Any) -> Tensor:
        return unit(torch.ones(shape, dtype=options.get("dtype")))


@breaks("random: dtype, device, shape")
class RandomForgetsTheDtype(Sound):
    def random(self, *shape: int, **options: Any) -> Tensor:
        return unit(torch.randn(shape, generator=options.get("generator"))).float()


@breaks("polish: keeps points")
class PolishMoves(Sound):
    def polish(self, x: Tensor) -> Tensor:
        return unit(x + 1e-6 * x.roll(1, -1))


@breaks("polish: no farther off")
class PolishMagnifies(Sound):
    def polish(self, x: Tensor) -> Tensor:
        return x * dot(x, x)


@breaks("split: parts are points")
class SplitsOffARest(Sound):
    def split(self, x: Tensor) -> list[tuple[Manifold, Tensor]]:
        return [(self, x[..., :2]), (self, x[..., 2:])]

    def join(self, parts: Any, shape: Any) -> Tensor:
        return torch.cat(list(parts), -1)


@breaks("split: join inverts")
class JoinsReversed(Sound):
    def join(self, parts: Any, shape: Any) -> Tensor:
        return parts[0].flip(-1).reshape(shape)


# Calls -----------------------------------------------------------------------------------------------------


@breaks("batch: equals loop", "batch: items do not mix")
class MixesBatch(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        while v.dim() > 1:
            v = v.mean(0)
        return unit(x + self.project(x, v.expand(x.shape)))


@breaks("batch: equals loop", "batch: items do not mix")
class NormOfTheBatch(Sound):
    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.project(x, g) / (g.norm() / dot(g, g).sqrt())


@breaks("batch: views")
class ReadsMemory(Sound):
    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.project(y, v.as_strided(v.shape, torch.empty(v.shape).stride()))


@breaks("calls: inputs untouched")
class WritesToItsInput(Sound):
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a.sub_(dot(x, a) * x)


@breaks("calls: dtype, device, shape")
class LosesTheDtype(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v).float()


@breaks("calls: dtype, device, shape")
class KeepsAnAxis(Sound):
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return dot(u, v)


@breaks("retract: feasible", "retract: fixes x")
class LosesDigits(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x.float() + v.float()).to(x)


@breaks("calls: dtype, device, shape")
class Raises(Sound):
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        raise RuntimeError("no way from here")


# Engines ---------------------------------------------------------------------------------------------------


@breaks("coordinates: identity on coordinates")
class DoubleCoordinates(Sound):
    def coordinates(self, x: Tensor, a: Tensor) -> Tensor:
        return 2 * self.project(x, a)


@breaks("coordinates: linear")
class CutCoordinates(Sound):
    def coordinates(self, x: Tensor, a: Tensor) -> Tensor:
        v = self.project(x, a)
        return v / dot(v, v).sqrt().clamp_min(1)


@breaks("coordinates: rank", "lift: coordinates of the gradient", "carry: coordinates of the transport")
class TooFewCoordinates(Sound):
    def coordinates(self, x: Tensor, a: Tensor) -> Tensor:
        line = unit(self.project(x, x.roll(1, -1)))
        return dot(line, a) * line


@breaks("lift: coordinates of the gradient")
class DoubleLift(Sound):
    def lift(self, x: Tensor, g: Tensor) -> Tensor:
        return 2 * self.gradient(x, g)


@breaks("move: fixes x")
class MoveDrifts(Sound):
    def move(self, x: Tensor, c: Tensor) -> Tensor:
        return unit(x + c + 1e-3 * x.roll(1, -1))


@breaks("move: first order")
class MoveByTheLength(Sound):
    """Not linear in c: the speed of the motion depends on the length of c."""

    def move(self, x: Tensor, c: Tensor) -> Tensor:
        size = dot(c, c)
        return unit(x + c * torch.where(size > 0, c[..., :1] / size.sqrt(), 0.0))


@breaks("move: feasible")
class MoveOff(Sound):
    def move(self, x: Tensor, c: Tensor) -> Tensor:
        return x + c


@breaks("move: derivative at 0")
class MoveNanAtZero(Sound):
    def move(self, x: Tensor, c: Tensor) -> Tensor:
        t = dot(c, c).sqrt()
        return torch.where(t > 0, t.cos() * x + t.sin() / t * c, x)


@breaks("move: derivatives")
class MoveWrongBackward(Sound):
    def move(self, x: Tensor, c: Tensor) -> Tensor:
        return HalfBackward.apply(unit(x + c), c)  # type: ignore[no-any-return, no-untyped-call]


@breaks("carry: coordinates of the transport")
class CarryDoubles(Sound):
    def carry(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return 2 * self.transport(x, y, c)


@breaks("coordinate_inner: the metric")
class HalfCoordinateInner(Sound):
    def coordinate_inner(self, x: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return self.inner(x, c, d) / 2


@breaks("store and recall: carry")
class StoresAsItIs(Sound):
    def store(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return c


@breaks("mix: momentum and gradient")
class MixesTheDifference(Sound):
    """|lift|^2 + |g_normal|^2: the norm of the Euclidean gradient."""

    def mix(self, x: Tensor, stored: Tensor, g: Tensor, keep: float, add: float) -> tuple[Tensor, Tensor]:
        return Engine.mix(engine(self), x, stored, g, keep, add)[0], dot(g, g).squeeze(-1)


@breaks("advance: move")
class AdvancesToFirstOrder(Sound):
    def advance(self, x: Tensor, c: Tensor, size: float | Tensor) -> Tensor:
        return x + size * c


@breaks("travel: advance and store")
class TravelsWithoutTransport(Sound):
    def travel(self, x: Tensor, c: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.retract(x, size * c), c


@breaks("reach: move of coordinates")
class ReachesWithoutProjection(Sound):
    def reach(self, x: Tensor, a: Tensor) -> Tensor:
        return self.retract(x, a)


# Geodesics -------------------------------------------------------------------------------------------------


@breaks("distance: zero at y = x", "distance: unit speed")
class AcosDistance(Sound):
    """acos of a clamped dot product: right to half the digits, and to none near y = x."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.acos(((x * y).sum(-1)).clamp(-1, 1 - 1e-14))


@breaks("exp: constant speed", "exp: continues itself")
class RetractionCalledExp(Sound):
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return unit(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y / dot(x, y) - x

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return dot(self.log(x, y), self.log(x, y)).sqrt().squeeze(-1)


@breaks("exp: first order")
class FastExp(Sound):
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return super().exp(x, 2 * v)


@breaks("exp: feasible")
class FlatExp(Sound):
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v


@breaks("log: inverse of exp")
class ProjectionCalledLog(Sound):
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.project(x, y - x)


@breaks("distance: shortest path")
class GreatCirclesOfAnotherMetric(Sound):
    """<u, v> + <k, u> <k, v> for a rotation field k: great circles have constant speed, but others are shorter."""

    def field(self, x: Tensor) -> Tensor:
        return torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2], 0 * x[..., 3]], -1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        k = self.field(x)
        return (dot(u, v) + dot(k, u) * dot(k, v)).squeeze(-1)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        k, v = self.field(x), self.project(x, g)
        return v - k * dot(k, v) / (1 + dot(k, k))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x, self.log(x, y))


@breaks("distance: symmetric", "distance: unit speed")
class OneWayDistance(Sound):
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return super().distance(x, y) * (1 + (x - y)[..., 0])

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)


@breaks("distance: unit speed")
class ChordDistance(Sound):
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return dot(x - y, x - y).sqrt().squeeze(-1)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return Sound().log(x, y)


# Values ----------------------------------------------------------------------------------------------------


@breaks("value: equality")
@dataclass(frozen=True, eq=False)
class EqualByIdentity(Sound):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@breaks("value: equality")
@dataclass(frozen=True, eq=False)
class EqualToAll(Sound):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@breaks("value: hash")
@dataclass(frozen=True, eq=False)
class HashByIdentity(Sound):
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return id(self)


@breaks("value: pickle")
class HoldsALambda(Sound):
    map: Callable[[Tensor], Tensor] = lambda x: x


@breaks("value: frozen")
class Mutable(Sound):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)


@breaks("value: repr")
class Talkative(Sound):
    def __repr__(self) -> str:
        return object.__repr__(self)


def report(manifold: Manifold, shape: tuple[int, ...] = (N,)) -> ConformanceError:
    with pytest.raises(ConformanceError) as caught:
        check_manifold(manifold, shape, dtype=torch.float64)
    return caught.value


def test_the_sound_one_passes() -> None:
    check_manifold(Sound, (N,), dtype=(torch.float32, torch.float64))


@pytest.mark.parametrize("broken", BREAKS, ids=[cls.__name__ for cls in BREAKS])
def test_the_report_has_the_right_lines(broken: type[Manifold]) -> None:
    error = report(broken())
    assert set(error.theorems) == BREAKS[broken], str(error)


def test_a_broken_factor_breaks_the_product() -> None:
    error = report(Euclidean * OrderZero() * Sound(), (3 * N,))
    assert error.theorems == ("retract: first order",)


@dataclass(frozen=True)
class Columns(NearestPointManifold):
    """Unit vectors, complex ones too, whose degrees of freedom are left at twice the real ones."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - x * (x.conj() * a).real.sum(-1, keepdim=True)

    def nearest(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def dim(self, shape: Any) -> int:
        return Sound().dim(shape)


def test_degrees_of_freedom_of_complex_points_are_the_real_rank() -> None:
    """2 n - 1 of a unit vector, and not 2 (n - 1)."""
    with pytest.raises(
        ConformanceError, match=rf"the rank is {2 * N - 1}, and dim_of_complex\S* is {2 * N - 2}, 2 dim"
    ):
        check_manifold(Columns, (N,), dtype=torch.complex128)
    check_manifold(Columns, (N,), dtype=torch.float64)


def test_a_number_is_a_shape_of_one_axis_and_nothing_else_is() -> None:
    check_manifold(Sound, N, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"the shape of points is written as 4 or \(4, 3\); got 4.0"):
        check_manifold(Sound, 4.0)  # type: ignore[arg-type]


def test_a_theorem_that_raises_is_a_line_with_the_message() -> None:
    assert "raised RuntimeError: no way from here" in str(report(Raises()))


def test_nan_is_never_within() -> None:
    for value in (math.nan, torch.tensor(math.nan), torch.tensor([0.0, math.nan, 0.0])):
        assert not within(value, math.inf).holds


def test_the_report_reads_well() -> None:
    """Who, on what; then one line a theorem: name, formula, measured > allowed, dtypes; then what was left out."""
    with pytest.raises(ConformanceError) as caught:
        check_manifold(DoubleGradient, (N,), dtype=(torch.float32, torch.float64))
    first, line, rest = str(caught.value).split("\n")
    assert first == f"DoubleGradient on points of shape ({N},) breaks 1 theorem of the contract:"
    assert re.fullmatch(
        r"  gradient: dual to the metric  inner\(x, gradient\(x, g\), u\) = Re<g, u> for u in T_x; "
        r"\S+ > \S+  \[float32, float64\]",
        line,
    )
    assert rest.startswith("Not evaluated, as they build on these: ")
    assert "gradient: slope of f" in rest


def test_the_error_keeps_its_findings_and_can_be_pickled() -> None:
    error = report(Talkative())
    (failure,) = error.failures
    assert (failure.theorem, failure.dtype) == ("value: repr", torch.float64)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, AssertionError)


def test_a_shape_without_points_is_reported_with_the_reason() -> None:
    with pytest.raises(ConformanceError, match=r"dim: additive.*raised ValueError: Orthogonal holds square matrices"):
        check_manifold(Orthogonal, (3, 2))


def test_the_result_is_a_function_of_the_arguments_and_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    reports = {str(report(HalfProjection())) for _ in range(2)}
    assert len(reports) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_without_hypothesis_only_the_strategies_are_missing() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None
from manifolds import Sphere
from manifolds.testing import check_manifold, points
check_manifold(Sphere, (3,))
try:
    points(Sphere)
except ImportError:
    print("needs hypothesis")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "needs hypothesis\n"
