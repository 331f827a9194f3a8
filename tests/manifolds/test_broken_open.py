"""check_manifold finds what is broken in open sets: one for each way, and what the report says of it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import GeodesicManifold, Manifold
from manifolds.testing import ConformanceError, check_manifold
from manifolds.testing._case import THEOREMS
from tests.manifolds.test_broken import BREAKS, breaks

N = 4
ALL = len(BREAKS)


@dataclass(frozen=True)
class Sound(GeodesicManifold):
    """Vectors of N positive numbers with the metric sum u v / x^2, right in every way: a straight space under log."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a

    def residual(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x - x, torch.where(x.isnan(), x, torch.inf)).abs().amax(-1)

    def random(self, *shape: Any, **options: Any) -> Tensor:
        return torch.randn(*shape, **options).exp()

    def dim(self, shape: Sequence[int]) -> int:
        return torch.Size(shape).numel()

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u / x * v / x).sum(-1)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return x * x * g

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return y * v / x

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v + v * v / x / 2

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x * (v / x).exp()

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.log1p((y - x) / x)


# The set ---------------------------------------------------------------------------------------------------


@breaks("residual: boundary")
class NoBoundary(Sound):
    """What makes a point is not asked."""

    def residual(self, x: Tensor) -> Tensor:
        return (x - x).abs().amax(-1)


@breaks("residual: NaN shows")
class RaisesForNan(Sound):
    def residual(self, x: Tensor) -> Tensor:
        torch.linalg.svdvals(x.diag_embed())
        return super().residual(x)


@breaks("random: feasible")
class RandomOnTheBoundary(Sound):
    def random(self, *shape: Any, **options: Any) -> Tensor:
        return torch.randn(*shape, **options).clamp_min(0)


# Steps -----------------------------------------------------------------------------------------------------


@breaks("retract: feasible")
class StraightSteps(Sound):
    """Nearly straight: the second order term is too small to turn them back."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v + v * v / x / 8


@breaks("retract: feasible")
class ClampedSteps(Sound):
    """Stops at the boundary, where nothing moves any more."""

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.where((v / x).amin(-1, keepdim=True) < -0.5, torch.zeros_like(x), super().retract(x, v))


@breaks("move: reach")
class NeverSmaller(Sound):
    """A move with a floor, below which random points lie; none so near above it that the move bends in a difference."""

    def random(self, *shape: Any, **options: Any) -> Tensor:
        x = super().random(*shape, **options)
        return torch.where((x > 0.3) & (x < 0.4), 0.4, x)

    def move(self, x: Tensor, c: Tensor) -> Tensor:
        floor = torch.where(x > 0.3, 0.3, 0.0)
        return floor + (x - floor) * (c / (x - floor)).exp()


@breaks("exp: feasible")
class ExpLeaves(Sound):
    """Right for short vectors only: a series that was cut."""

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        t = v / x
        return torch.where((t < -0.5).any(-1, keepdim=True), -x, x * t.exp())


# The metric ------------------------------------------------------------------------------------------------


@breaks("transport: bounded")
class PlainTransport(Sound):
    """Momentum carried by plain projection: near the boundary it is long, and Adam blows up."""

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v


@breaks("gradient: dual to the metric")
class EuclideanGradient(Sound):
    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g


@breaks("exp: feasible")
class StraightGeodesics(Sound):
    """Those of the entries, not of the metric."""

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x


@breaks("distance: symmetric", "distance: unit speed")
class RelativeDistance(Sound):
    """|y - x| / x: the length of the tangent vector y - x, not of the way."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return ((y - x) / x).square().sum(-1).sqrt()


@breaks("mean: critical")
class ArithmeticMean(Sound):
    def mean(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return x.mean(-2)


@breaks("geodesic: between its ends")
class StraightLines(Sound):
    def geodesic(self, x: Tensor, y: Tensor, t: float | Tensor) -> Tensor:
        return x + (y - x) * (t.unsqueeze(-1) if isinstance(t, Tensor) else t)


@breaks("random_tangent: tangent")
class TheSameTangent(Sound):
    def random_tangent(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn_like(x)


OPEN = list(BREAKS)[ALL:]


def report(manifold: Manifold) -> ConformanceError:
    with pytest.raises(ConformanceError) as caught:
        check_manifold(manifold, (N,), dtype=torch.float64)
    return caught.value


@pytest.mark.parametrize("seed", range(4))
def test_the_sound_one_passes(seed: int) -> None:
    check_manifold(Sound, (N,), dtype=(torch.float32, torch.float64), seed=seed)


@pytest.mark.parametrize("broken", OPEN, ids=[cls.__name__ for cls in OPEN])
def test_the_report_has_the_right_lines(broken: type[Manifold]) -> None:
    error = report(broken())
    assert set(error.theorems) == BREAKS[broken], str(error)


def test_every_theorem_can_fail() -> None:
    assert set().union(*BREAKS.values()) == {theorem.name for theorem in THEOREMS}


def test_there_are_ten_of_them() -> None:
    assert len(OPEN) >= 10


def test_a_boundary_and_a_nan_beside_other_points_are_said_in_words() -> None:
    assert "no step may reach its boundary" in str(report(StraightSteps()))
    assert "nothing is known of the points beside it" in str(report(RaisesForNan()))
    assert "a straight line leaves it" in str(report(NoBoundary()))


def test_missed_targets_are_counted() -> None:
    assert "are missed" in str(report(NeverSmaller()))
