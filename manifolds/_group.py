"""The orthogonal (unitary) group, where a tangent vector X Omega is known by its skew Omega.

Lifting a gradient is one product, moving one solve, and transport is nothing at all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._linalg import resolvent, skew
from .retractions import Retraction, cayley, exp, polar

Square = Inexact[Tensor, "*batch n n"]


def project(x: Square, a: Square) -> Square:
    """X skew(X^H A)."""
    return x @ skew(x.mH @ a)


def lift(x: Square, g: Square) -> Square:
    """skew(X^H G): the Omega of the gradient of the metric <U, V>."""
    return skew(x.mH @ g)


def transport(x: Square, y: Square, v: Square) -> Square:
    """Y X^H V: the same Omega at Y."""
    return y @ skew(x.mH @ v)


def move(retraction: Retraction, x: Square, omega: Square) -> Square:
    """retraction(X, X Omega). `polar` is replaced by `cayley`: X (I + Omega + Omega^2/2 + O(Omega^3)) for both, and
    one solve in place of an inverse square root."""
    if retraction in (cayley, polar):
        return 2 * x @ resolvent(omega) - x
    if retraction is exp:
        return x @ torch.matrix_exp(omega)
    return retraction(x, x @ omega)


def polar_factor(a: Inexact[Tensor, "*batch n p"]) -> Inexact[Tensor, "*batch n p"]:
    """W V^H of the thin singular value decomposition A = W S V^H: the nearest matrix with orthonormal columns (rows).

    Raises ValueError where A has no unique nearest one: not finite, or of deficient rank.
    """
    if not bool(torch.isfinite(a).all()):
        raise ValueError(
            f"no nearest orthonormal matrix: the tensor of shape {tuple(a.shape)} has NaN or infinite entries."
        )
    w, s, vh = torch.linalg.svd(a, full_matrices=False)
    check_rank(a, s)
    return w @ vh


def check_rank(a: Inexact[Tensor, "*batch n p"], s: Float[Tensor, "*batch k"]) -> None:
    """ValueError where singular values S say that A is of deficient rank."""
    floor = s[..., :1] * max(a.shape[-2:]) * torch.finfo(a.dtype).eps
    deficient = (s <= floor).any(-1)
    if bool(deficient.any()):
        raise ValueError(
            f"no nearest orthonormal matrix: {int(deficient.sum())} of {deficient.numel()} matrices of shape "
            f"{tuple(a.shape[-2:])} have deficient rank. Start from another value: init='haar' or init='identity'."
        )
