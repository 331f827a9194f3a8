"""What a theorem is stated about, and how it is stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._points import inner
from ..base import Manifold, NearestPointManifold, per_point, tolerance
from ..engine import Engine, engine

HALVINGS = 64  # more than take any number to a boundary that another of its dtype is at


class Finding(NamedTuple):
    """One number a theorem speaks of, and the largest it may be; where says which call, item or value it is about."""

    measured: float
    allowed: float
    where: str = ""
    statement: bool = False

    @property
    def holds(self) -> bool:
        """measured <= allowed; False for NaN."""
        return self.measured <= self.allowed


def within(error: Tensor | float, allowed: float, where: str = "") -> Finding:
    """Every entry of error is at most allowed; a NaN among them is larger than anything."""
    worst = float(error.detach().max()) if isinstance(error, Tensor) else error
    return Finding(worst, allowed, where)


def inside(case: Case, y: Tensor, allowed: float, where: str) -> Finding:
    """residual(y) <= allowed; on an open set, what it means if not."""
    residual = case.manifold.residual(y)
    if not case.is_open or bool((residual <= allowed).all()):
        return within(residual, allowed, where)
    what = "gives NaN" if bool(y.isnan().any()) else f"leaves the set, with residual {float(residual.max()):.2g}"
    return holds(
        False,
        f"{where} {what}: an open set has no nearest point to come back to, so that no step may reach its boundary; "
        f"x exp(v/x) and x + v + v x^-1 v/2 keep positive what is positive",
    )


def holds(truth: bool, where: str) -> Finding:
    """A statement that is true or false; where says what is the case if it is false."""
    return Finding(0.0 if truth else 1.0, 0.0, where, statement=True)


@dataclass(frozen=True)
class Case:
    """A manifold, the shape and dtype of its points, and points and vectors drawn from a seed.

    Every draw is made once, and belongs to its number: which theorems run, in which order, changes nothing.
    """

    manifold: Manifold
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    seed: int

    @cached_property
    def engine(self) -> Engine:
        return engine(self.manifold)

    # How close is close ----------------------------------------------------------------------------------

    @property
    def eps(self) -> float:
        return float(torch.finfo(self.dtype).eps)

    @cached_property
    def rounding(self) -> float:
        """What an exact formula may be off by, for vectors of norm 1: 128 eps, times |x| where that is above 1."""
        return tolerance(self.dtype) * max(1.0, float(self.size(self.x).max()))

    @property
    def step(self) -> float:
        """The step of finite differences, where rounding and the fifth derivative cost the same."""
        return float(self.eps**0.2)

    @property
    def slope_error(self) -> float:
        """What `slope` may be off by, for curves of speed 1."""
        return float(1e3 * self.eps**0.8)

    @property
    def is_open(self) -> bool:
        """Whether nothing says that the set is closed: a step may end at a boundary, and lengths are of the metric."""
        return not isinstance(self.manifold, NearestPointManifold)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Of steps, from short to long. What is open is left by none, but longer ones end at its boundary to rounding:
        at exp(-3) of the way on positive numbers."""
        return (0.01, 1, 3) if self.is_open else (0.01, 1, 10, 100)

    @property
    def short(self) -> float:
        """The length of a geodesic that is the shortest one."""
        return 0.1 if self.is_open else 0.5

    # Points and vectors ----------------------------------------------------------------------------------

    def generator(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(1000 * self.seed + number)

    def point(self, number: int) -> Tensor:
        return self.manifold.random(*self.shape, generator=self.generator(number), dtype=self.dtype, device=self.device)

    @cached_property
    def x(self) -> Tensor:
        return self.point(0)

    @cached_property
    def y(self) -> Tensor:
        return self.point(1)

    def ambient(self, number: int) -> Tensor:
        """A tensor of the shape of the points, of norm 1 at each."""
        noise = torch.randn(self.shape, generator=self.generator(number), dtype=self.dtype, device=self.device)
        return self.unit(noise)

    def dim(self) -> int:
        """The real degrees of freedom of the points."""
        return (self.manifold.dim_of_complex if self.dtype.is_complex else self.manifold.dim)(self.shape)

    def basis(self) -> Tensor:
        """Tensors of the shape of the points, on one more batch axis: an orthonormal basis of them over the reals."""
        units = torch.eye(self.x.numel(), dtype=self.dtype, device=self.device).reshape(-1, *self.shape)
        return torch.cat([units, 1j * units]) if self.dtype.is_complex else units

    def tangent(self, number: int, at: Tensor | None = None) -> Tensor:
        """A tangent vector of norm 1 at x, or at another point, zero where there is no other. On open sets 1 is the
        larger of two norms, the ambient one and that of the metric, and of both sides x + 2v is in the set too: a
        boundary that is near, as it may be in the metric, bends what is measured at shorter steps than those."""
        x = self.x if at is None else at
        v = self._made(x, self.manifold.project, number)
        return self._inside(x, self._limited(v, self.manifold.inner(x, v, v))) if self.is_open else v

    def steps(self) -> tuple[Tensor, ...]:
        """Tangent vectors to take steps along: of norm 1, on open sets in the metric."""
        if not self.is_open:
            return (self.tangent(2),)
        vectors = [self._made(self.x, self.manifold.project, number) for number in (3, 2)]
        return tuple(sign * self._to_metric(w, self.manifold.inner(self.x, w, w)) for w in vectors for sign in (1, -1))

    def direction(self, number: int) -> Tensor:
        """`ambient`, on open sets no longer than makes its tangent part of norm 1 in the metric."""
        a = self.ambient(number)
        if not self.is_open:
            return a
        v = self.manifold.project(self.x, a)
        return self._limited(a, self.manifold.inner(self.x, v, v))

    def coordinates(self, number: int) -> Tensor:
        """Coordinates at x of norm 1, or zero where there are no others."""
        c = self._made(self.x, self.engine.coordinates, number)
        return self._limited(c, self.engine.coordinate_inner(self.x, c, c)) if self.is_open else c

    def coordinate_steps(self) -> tuple[Tensor, ...]:
        """Coordinates of such vectors."""
        c = self.coordinates(2)
        if not self.is_open:
            return (c,)
        d = self.coordinates(3)
        square = self.engine.coordinate_inner
        return tuple(sign * self._to_metric(w, square(self.x, w, w)) for w in (c, d) for sign in (1, -1))

    def _made(self, x: Tensor, projection: Callable[[Tensor, Tensor], Tensor], number: int) -> Tensor:
        # once more: division by a small norm magnifies what rounding leaves of the normal part
        return projection(x.clone(), self.unit(projection(x.clone(), self.ambient(number))))

    def _inside(self, x: Tensor, v: Tensor) -> Tensor:
        """v, halved until neither x + 2v nor x - 2v is beyond a boundary, where a residual is infinite."""
        for _ in range(HALVINGS):
            residuals = self.manifold.residual(x + 2 * v), self.manifold.residual(x - 2 * v)
            beyond = ~(residuals[0].isfinite() & residuals[1].isfinite())
            if not bool(beyond.any()):
                break
            v = self.times(torch.where(beyond, 0.5, 1.0), v)
        return v

    def _limited(self, v: Tensor, square: Tensor) -> Tensor:
        """v / max(1, its norm), for the square of it; v where that is none."""
        long = (square > 1) & square.isfinite()
        return self.times(torch.where(long, torch.where(long, square, 1).rsqrt(), 1), v)

    def _to_metric(self, v: Tensor, square: Tensor) -> Tensor:
        """v divided by its norm, for the square of it; v where that is none."""
        sound = (square > 1e-12) & square.isfinite()
        return self.times(torch.where(sound, square, 1).rsqrt(), v)

    def at(self, *batch: int) -> Case:
        """The same with more batch axes."""
        return Case(self.manifold, (*batch, *self.shape), self.dtype, self.device, self.seed)

    def flat(self, a: Tensor) -> Tensor:
        """The points of a on one batch axis."""
        return a.reshape(-1, *a.shape[a.dim() - self.manifold.ndim :])

    # Numbers ---------------------------------------------------------------------------------------------

    def size(self, a: Tensor) -> Tensor:
        """|a| in the ambient norm, one number per point."""
        return self.dot(a, a).sqrt()

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Re<a, b>, one number per point."""
        return inner(a, b, self.manifold.ndim)

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """|a - b|, one number per point; shapes must agree, as broadcasting would hide a missing axis."""
        if a.shape != b.shape:
            raise ValueError(f"shape {tuple(a.shape)} where {tuple(b.shape)} is due")
        return self.size(a - b)

    def times(self, s: Tensor, a: Tensor) -> Tensor:
        """s a, for one number per point."""
        return per_point(s, self.manifold.ndim) * a

    def unit(self, a: Tensor) -> Tensor:
        size = self.size(a)
        zero = size <= 1e-3
        return self.times(torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, size)), a)

    def slope(self, curve: Callable[[float], Tensor], at: float = 0.0) -> Tensor:
        """The derivative of a curve at a time, by central differences of fourth order."""
        t = self.step
        near, far = curve(at + t) - curve(at - t), curve(at + 2 * t) - curve(at - 2 * t)
        return (8 * near - far) / (12 * t)

    def quarters(self, error: Callable[[float], Tensor], where: str = "") -> Finding:
        """error(t) = O(t^2): halving t quarters it (0.25, plus the next order), or leaves nothing but rounding."""
        t = self.step
        whole, half = error(t), error(t / 2)
        return within(torch.where(half <= self.rounding, 0.0, half / whole), 0.35, where)

    # The function whose gradient is asked for: f(z) = 2 Re<a, z> + Re<b, z>^2 / 2, one number per point ---------

    def f(self, z: Tensor) -> Tensor:
        return 2 * self.dot(self.ambient(11), z) + self.dot(self.ambient(12), z) ** 2 / 2

    def euclidean_gradient(self, x: Tensor) -> Tensor:
        """2a + Re<b, x> b."""
        return 2 * self.ambient(11) + self.times(self.dot(self.ambient(12), x), self.ambient(12))

    def velocity(self, x: Tensor, c: Tensor) -> Tensor:
        """The tangent vector at x with coordinates c: that with which `move` leaves x."""
        return self.slope(lambda t: self.engine.move(x, t * c))


@dataclass(frozen=True)
class Theorem:
    """A statement of the contract: its name, its formula, the theorems it builds on, and how to measure it.

    Where one of `needs` is broken, what is measured would say nothing about this one: it is left out.
    """

    name: str
    formula: str
    check: Callable[[Case], Iterator[Finding]]
    needs: tuple[str, ...]
    applies: Callable[[Case], bool]


THEOREMS: list[Theorem] = []
GROUND = ("random: dtype, device, shape", "random: feasible", "calls: dtype, device, shape", "calls: inputs untouched")


def theorem(
    name: str,
    formula: str,
    *,
    needs: tuple[str, ...] = (),
    ground: bool = True,
    applies: Callable[[Case], bool] = lambda case: True,
) -> Callable[[Callable[[Case], Iterator[Finding]]], Theorem]:
    """Enters a check as a theorem; all but the first of them need that points can be drawn and methods called."""

    def enter(check: Callable[[Case], Iterator[Finding]]) -> Theorem:
        THEOREMS.append(Theorem(name, formula, check, ((*GROUND,) if ground else ()) + needs, applies))
        return THEOREMS[-1]

    return enter
