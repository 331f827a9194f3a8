"""Square matrices: a tangent vector X Omega is known by its skew Omega, which needs no transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import inner, length
from .engine import Engine
from .kernels import chart, steps
from .kernels.cayley import cayley_move, cayley_step
from .kernels.determinant import unit_determinant
from .kernels.exponential import exp_move
from .kernels.linalg import eye_like, may_look, may_wait, newton_schulz, skew
from .kernels.logarithm import logarithm
from .kernels.tiny import batch_last, in_order_of, product
from .kernels.transforms import whole
from .retractions import Retraction, cayley, exp, polar

if TYPE_CHECKING:
    from .base import Manifold

Square = Inexact[Tensor, "*batch n n"]


def project(x: Square, a: Square) -> Square:
    """X skew(X^H A)."""
    return x @ skew(x.mH @ a)


def transport(x: Square, y: Square, v: Square) -> Square:
    """Y X^H V: the same Omega at Y."""
    return y @ skew(x.mH @ v)


def traceless(omega: Square) -> Square:
    """Omega - tr(Omega) I / n; a real skew matrix has no trace."""
    if not omega.is_complex():
        return omega
    trace = omega.diagonal(dim1=-2, dim2=-1).mean(-1)
    return omega - trace[..., None, None] * eye_like(omega)


class SquareEngine(Engine):
    """The engine of O(n), U(n), SO(n), SU(n) and square Stiefel: coordinates are Omega = X^H V.

    Lifting a gradient is one product, moving one solve, and transport is nothing at all. `polar` is replaced by
    `cayley`: X (I + Omega + Omega^2/2 + O(Omega^3)) for both, and one solve in place of an inverse square root.

    canonical: whether the metric is Re tr(C^H D) / 2, and not Re tr(C^H D).
    special: whether determinants are 1, and the Omega of complex matrices have no trace.
    """

    def __init__(
        self, manifold: Manifold, retraction: Retraction, *, canonical: bool = False, special: bool = False
    ) -> None:
        super().__init__(manifold)
        self._retraction, self._canonical, self._special = retraction, canonical, special
        self._by_cayley = retraction in (cayley, polar)

    def coordinates(self, x: Square, a: Square) -> Square:
        """skew(A), without its trace for `special`."""
        return traceless(skew(a)) if self._special else skew(a)

    def lift(self, x: Square, g: Square) -> Square:
        """skew(X^H G), twice that for the canonical metric, without its trace for `special`."""
        c = in_order_of(skew(product(batch_last(x).mH, batch_last(g))), x)
        c = c * 2 if self._canonical else c
        return traceless(c) if self._special else c

    def move(self, x: Square, c: Square) -> Square:
        """X Cayley(C); X exp(C) for `exp`; the retraction of X C for others."""
        if self._by_cayley:
            y = cayley_move(x, c)
        else:
            y = exp_move(x, c) if self._retraction is exp else self._retraction(x, x @ c)
        return unit_determinant(y) if self._special else y

    def carry(self, x: Square, y: Square, c: Square) -> Square:
        """C."""
        return c

    def coordinate_inner(self, x: Square, c: Square, d: Square) -> Float[Tensor, "*batch"]:
        """Re tr(C^H D), half of it for the canonical metric."""
        return inner(c, d, 2) / 2 if self._canonical else inner(c, d, 2)

    def recenter(self, x: Square, y: Square, c: Square, m: Square) -> Square:
        """As defined; for Cayley (I - C/2) M (I + C/2), less what has a trace for `special`; for `exp` by a series, or
        eigenvalues where C is long."""
        if self._retraction is exp:
            carried, short = chart.exponential(c, m)
            return carried if not may_look(c) or bool(short.all()) else chart.exponential_of_any(c, m)
        if not self._by_cayley:
            return super().recenter(x, y, c, m)
        return chart.cayley_special(c, m) if self._special and m.is_complex() else chart.cayley(c, m)

    def polish(self, x: Square) -> Square:
        """X (3I - X^H X) / 2."""
        return newton_schulz(x)

    def mix(self, x: Square, stored: Square, g: Square, keep: float, add: float) -> tuple[Square, Tensor]:
        """As defined, with fewer passes over memory; plainly where a trace is to be taken out."""
        if self._special and x.is_complex():
            return super().mix(x, stored, g, keep, add)
        return steps.mix_square(x, stored, g, keep, add, self._canonical)

    def advance(self, x: Square, c: Square, size: float | Tensor) -> Square:
        """As defined; for short steps by series, where engines use Cayley."""
        y = cayley_step(x, c, size) if self._by_cayley else None
        if y is None:
            return super().advance(x, c, size)
        return unit_determinant(y) if self._special else y


def log(name: object, x: Square, y: Square, *, special: bool = False) -> Square:
    """X Omega with the shortest skew Omega of exp(Omega) = X^H Y. Raises ValueError where no path joins X and Y; NaN
    in a graph that is recorded."""
    q = x.mH @ y
    omega = logarithm(q, special=special)
    if (
        not special
        and may_wait(omega)
        and bool((whole(omega.detach()).isnan().any() & whole(q.detach()).isfinite().all()).any())
    ):
        raise ValueError(
            f"no path on {name} leads from a matrix to one whose determinant has the other sign; got x of shape "
            f"{tuple(x.shape)} and y of shape {tuple(y.shape)} with such a pair. Leave out the pairs that have an "
            f"infinite distance(x, y)."
        )
    return x @ omega


def distance(x: Square, y: Square, *, special: bool = False) -> Float[Tensor, "*batch"]:
    """|Omega|, of the shortest skew Omega with exp(Omega) = X^H Y; infinite where there is none."""
    q = x.mH @ y
    omega = logarithm(q, special=special)
    apart = omega.detach().isnan().any(-1).any(-1)
    far = length(torch.where(apart[..., None, None], 0, omega), 2)
    bad = torch.where(q.detach().isfinite().all(-1).all(-1), torch.inf, torch.nan).to(far)
    return torch.where(apart, bad, far)


def check_retraction(name: str, retraction: object) -> None:
    """TypeError where the retraction of the manifold of this name is no function."""
    if not callable(retraction):
        raise TypeError(
            f"the retraction of {name} is a function (x, v) -> y; got {retraction!r}. "
            f"Pass manifolds.retractions.polar, qr, cayley or exp, or a function of your own."
        )
