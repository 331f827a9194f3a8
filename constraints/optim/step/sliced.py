"""Tall matrices with orthonormal columns whose rows are spread over processes, and wide ones by their transposes.

Every classical step stays in the span of the columns of X, M and G, so that the processes need of each other's rows
only p x p matrices: they add up their parts of X^H G, X^H M and |G|^2, and once the step is known those of Y^H Y. Each
then solves the same p x p problem, to the bit, and multiplies its own rows by the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from manifolds import Grassmann, Manifold, Stiefel, tolerance
from manifolds.engine import Engine
from manifolds.kernels.linalg import inverse_sqrt, inverse_sqrt_defect, may_look
from manifolds.kernels.mend import MUCH
from manifolds.kernels.steps import FEW_DIGITS
from manifolds.retractions import polar

from ...summing import Parts
from .limits import too_long

Rows = Inexact[Tensor, "*batch n p"]
Square = Inexact[Tensor, "*batch p p"]
Numbers = Float[Tensor, "*batch"]


@dataclass(frozen=True, repr=False)
class Sliced(Manifold):
    """Points of Stiefel or Grassmann of which this process has some rows, of wide ones some columns.

    Rows of zeros may stand for none. What is computed of points is computed with all processes of `parts`, which ask
    for it in the same order: one number per whole point is equal on all of them.
    """

    whole: Stiefel | Grassmann
    long: int  # rows of a whole point
    wide: bool
    parts: Parts

    ndim = 2
    constant_norm = True

    def __repr__(self) -> str:
        return repr(self.whole)

    @property
    def is_quotient(self) -> bool:  # type: ignore[override]
        return self.whole.is_quotient

    def project(self, x: Rows, a: Rows) -> Rows:
        """As there."""
        return _SlicedEngine(self).coordinates(x, a)

    def gradient(self, x: Rows, g: Rows) -> Rows:
        """As there."""
        return _SlicedEngine(self).lift(x, g)

    def inner(self, x: Rows, u: Rows, v: Rows) -> Numbers:
        """As there."""
        return _SlicedEngine(self).coordinate_inner(x, u, v)

    def retract(self, x: Rows, v: Rows) -> Rows:
        """The polar factor of X + V."""
        return _SlicedEngine(self).move(x, v)

    def residual(self, x: Rows) -> Numbers:
        """max |X^H X - I|."""
        (e,) = self.parts.summed(gram(x, x, self.wide))
        e.diagonal(dim1=-2, dim2=-1).sub_(1)
        return e.abs().amax((-2, -1))

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Rows:
        """Slices of a random point, where generators differ between processes."""
        return _SlicedEngine(self).polish(torch.randn(*shape, generator=generator, dtype=dtype, device=device))  # type: ignore[arg-type]

    def dim(self, shape: Sequence[int]) -> int:
        """That of the whole points."""
        return self.whole.dim(self._whole(shape))

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """That of the whole points."""
        return self.whole.dim_of_complex(self._whole(shape))

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        short = (shape[-2], self.long) if self.wide else (self.long, shape[-1])
        return *shape[:-2], *short

    def _engine(self) -> Engine:
        return _SlicedEngine(self)


class _SlicedEngine(Engine):
    """Coordinates are the rows of the tangent vector. In the formulas A = X^H G."""

    def __init__(self, manifold: Sliced) -> None:
        super().__init__(manifold)
        self._wide, self._parts = manifold.wide, manifold.parts
        self._horizontal = isinstance(manifold.whole, Grassmann)
        self._canonical = getattr(manifold.whole, "metric", None) == "canonical"

    def coordinates(self, x: Rows, a: Rows) -> Rows:
        """The projection of A."""
        return self._less(a.clone(), x, self._normal(*self._parts.summed(self._gram(x, a))))

    def lift(self, x: Rows, g: Rows) -> Rows:
        """The gradient."""
        return self._less(g.clone(), x, self._of_gradient(*self._parts.summed(self._gram(x, g))))

    def carry(self, x: Rows, y: Rows, c: Rows) -> Rows:
        """The projection of C at Y."""
        return self.coordinates(y, c)

    def store(self, x: Rows, y: Rows, c: Rows) -> Rows:
        """C itself: `recall` projects it."""
        return c

    def recall(self, x: Rows, stored: Rows) -> Rows:
        """The projection of C."""
        return self.coordinates(x, stored)

    def coordinate_inner(self, x: Rows, c: Rows, d: Rows) -> Numbers:
        """The metric."""
        product = (c.conj() * d).real.sum((-2, -1))
        if not self._canonical:
            return self._parts.summed(product)[0]
        product, a, b = self._parts.summed(product, self._gram(x, c), self._gram(x, d))
        return product - (a.conj() * b).real.sum((-2, -1)) / 2

    def mix(self, x: Rows, stored: Rows, g: Rows, keep: float, add: float) -> tuple[Rows, Numbers]:
        """(keep P(M) + add grad, |grad|^2): P and grad are linear in M and G, so that one product with X does for both.
        One all-reduce, or two, see `_square`. M is overwritten, once the first has come back."""
        a, m, total = self._parts.summed(self._gram(x, g), self._gram(x, stored), _squares(g))
        of_gradient = self._of_gradient(a)
        square = self._square(x, g, a, of_gradient, total)
        mixed = stored.lerp_(g, add) if keep + add == 1 else stored.mul_(keep).add_(g, alpha=add)
        return self._less(mixed, x, keep * self._normal(m) + add * of_gradient), square

    def _square(self, x: Rows, g: Rows, a: Square, of_gradient: Square, total: Numbers) -> Numbers:
        """|grad|^2, which is |G|^2 less what is normal in it; where that difference has lost digits, near an optimum,
        and where values may not be looked at, from the gradient itself."""
        if may_look(x):
            normal = (a * a.mT).real.sum((-2, -1)) if self._canonical else _squares(of_gradient)
            square = total - normal
            if bool((square >= FEW_DIGITS * total).all()):  # not so for Inf - Inf
                return square
        grad = self._less(g.clone(), x, of_gradient)
        return self.coordinate_inner(x, grad, grad)

    def move(self, x: Rows, c: Rows) -> Rows:
        return self.advance(x, c, 1.0)

    def advance(self, x: Rows, c: Rows, size: float | Tensor) -> Rows:
        """The polar factor of Y = X + size C, by Y^H Y: one all-reduce. Long steps, from a condition of 8 on, and those
        at which nothing may be looked at, are polished, which is another one.
        Raises torch.linalg.LinAlgError, on all processes, where there is none or rounding has left nothing of it."""
        y = torch.addcmul(x, c, size) if isinstance(size, Tensor) else torch.add(x, c, alpha=size)
        return self.polish(y)

    def polish(self, x: Rows) -> Rows:
        """X (X^H X)^(-1/2): the nearest point."""
        (s,) = self._parts.summed(self._gram(x, x))
        if not may_look(x):
            return self._newton_schulz(self._times(x, inverse_sqrt((s + s.mH) / 2)))[0]
        e = s.clone()
        e.diagonal(dim1=-2, dim2=-1).sub_(1)
        t = inverse_sqrt_defect(e)
        if t is not None:
            return self._less(x, x, t / 2)
        if not bool(torch.isfinite(torch.view_as_real(e) if e.is_complex() else e).all()):
            raise too_long()
        values, q = torch.linalg.eigh(e)
        y = self._times(x, (q * (1 + values).rsqrt().unsqueeze(-2)) @ q.mH)
        if not values.numel() or values.max().item() <= MUCH:
            return y
        for _ in range(3):  # from an error below 1/2 to rounding
            y, defect = self._newton_schulz(y)
            if defect <= tolerance(y.dtype):  # what it was before
                return y
        raise too_long()

    @property
    def polishes(self) -> bool:
        """False: a step leaves nothing of rounding before it, and polishes itself where it has to."""
        return False

    def renormalizes(self, x: Rows) -> bool:
        """True: it is the polar factor."""
        return True

    def _normal(self, n: Square) -> Square:
        """What P takes away of C is X times this, n = X^H C."""
        return n if self._horizontal else (n + n.mH) / 2

    def _of_gradient(self, a: Square) -> Square:
        """grad = G - X times this."""
        return a.mH if self._canonical else self._normal(a)

    def _gram(self, x: Rows, a: Rows) -> Square:
        return gram(x, a, self._wide)

    def _times(self, x: Rows, s: Square) -> Rows:
        return s @ x if self._wide else x @ s

    def _less(self, a: Rows, x: Rows, s: Square) -> Rows:
        """A - X S, in the memory of A unless that is X."""
        if a.dim() != 3:
            return a - self._times(x, s) if a is x else a.sub_(self._times(x, s))
        left, right = (s, x) if self._wide else (x, s)
        return torch.baddbmm(a, left, right, alpha=-1, out=None if a is x else a)

    def _newton_schulz(self, y: Rows) -> tuple[Rows, float | Tensor]:
        """Y (3I - Y^H Y) / 2, and how far Y^H Y was from I, where that may be looked at."""
        (e,) = self._parts.summed(self._gram(y, y))
        e.diagonal(dim1=-2, dim2=-1).sub_(1)
        return self._less(y, y, e / 2), e.abs().max().item() if may_look(y) else 0.0


def gram(x: Rows, a: Rows, wide: bool) -> Square:
    """This process's part of X^H A; of A X^H for wide matrices."""
    return a @ x.mH if wide else x.mH @ a


def takes_slices(factor: Manifold) -> bool:
    """Whether `Sliced` makes the steps of this manifold, if its points are no squares."""
    return type(factor) is Grassmann or (type(factor) is Stiefel and factor.retraction is polar)


def _squares(a: Tensor) -> Numbers:
    return torch.linalg.vector_norm(a, dim=(-2, -1)).square_()  # type: ignore[no-any-return]
