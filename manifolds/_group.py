"""The orthogonal (unitary) group, where a tangent vector X Omega is known by its skew Omega.

Lifting a gradient is one product, moving one solve, and transport is nothing at all.
"""

from __future__ import annotations

from jaxtyping import Inexact
from torch import Tensor

from .kernels.cayley import cayley_move
from .kernels.exponential import exp_move
from .kernels.linalg import skew
from .kernels.tiny import batch_last, in_order_of, product
from .retractions import Retraction, cayley, exp, polar

Square = Inexact[Tensor, "*batch n n"]


def project(x: Square, a: Square) -> Square:
    """X skew(X^H A)."""
    return x @ skew(x.mH @ a)


def lift(x: Square, g: Square) -> Square:
    """skew(X^H G): the Omega of the gradient of the metric <U, V>."""
    return in_order_of(skew(product(batch_last(x).mH, batch_last(g))), x)


def transport(x: Square, y: Square, v: Square) -> Square:
    """Y X^H V: the same Omega at Y."""
    return y @ skew(x.mH @ v)


def move(retraction: Retraction, x: Square, omega: Square) -> Square:
    """retraction(X, X Omega). `polar` is replaced by `cayley`: X (I + Omega + Omega^2/2 + O(Omega^3)) for both, and
    one solve in place of an inverse square root."""
    if retraction in (cayley, polar):
        return cayley_move(x, omega)
    if retraction is exp:
        return exp_move(x, omega)
    return retraction(x, x @ omega)


def check_retraction(name: str, retraction: object) -> None:
    """TypeError where the retraction of the manifold of this name is no function."""
    if not callable(retraction):
        raise TypeError(
            f"the retraction of {name} is a function (x, v) -> y; got {retraction!r}. "
            f"Pass manifolds.retractions.polar, qr, cayley or exp, or a function of your own."
        )
