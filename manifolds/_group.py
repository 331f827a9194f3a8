"""The orthogonal (unitary) group, where a tangent vector X Omega is known by its skew Omega.

Lifting a gradient is one product, moving one solve, and transport is nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._cayley import cayley_move
from ._exponential import exp_move
from ._linalg import is_traced, newton_schulz, skew
from ._polar import factor
from ._tiny import batch_last, in_order_of, product
from ._transforms import whole
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


def polar_factor(a: Inexact[Tensor, "*batch n p"]) -> Inexact[Tensor, "*batch n p"]:
    """W V^H of the thin singular value decomposition A = W S V^H: the nearest matrix with orthonormal columns (rows).

    Raises ValueError where A has no unique nearest one: not finite, or of deficient rank.
    """
    if a.shape[-2] < a.shape[-1]:
        q = polar_factor(a.mH).mT.contiguous()  # no view, nor one of a conjugate
        return q.conj_physical() if q.is_complex() else q
    w, s, vh = unique_svd(a, lambda w, s, vh: s[..., -1], "have deficient rank")
    return newton_schulz(factor(a, w, s, vh))


def haar(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Inexact[Tensor, "*batch n p"]:
    """The polar factor of a Gaussian matrix, which is uniform: a Gaussian of poor condition has one as good as any."""
    gaussian = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
    w, _, vh = torch.linalg.svd(gaussian, full_matrices=False)
    return newton_schulz(w @ vh)


def unique_svd(
    a: Inexact[Tensor, "*batch n p"], gap: Callable[[Tensor, Tensor, Tensor], Tensor], lack: str
) -> tuple[Tensor, Tensor, Tensor]:
    """W, S, V^H of the thin A = W S V^H, constants, where gap(W, S, V^H) is more than rounding of S.

    Raises ValueError where A is not finite, or where the gap, 0 where no nearest matrix is unique, is not; where values
    cannot be looked at, the result is NaN there.
    """
    a = a.detach().resolve_conj()  # a view of the conjugate is not for vmap
    look = not is_traced()
    if look and not whole(torch.isfinite(a)).all():
        raise ValueError(
            f"no nearest orthonormal matrix: the tensor of shape {tuple(a.shape)} has NaN or infinite entries."
        )
    w, s, vh = torch.linalg.svd(a, full_matrices=False)
    eps = torch.finfo(a.dtype).eps
    lacking = ~(gap(w, s, vh) > s[..., 0] * max(a.shape[-2:]) * eps)
    if not look:
        return torch.where(lacking[..., None, None], torch.nan, w), s, vh
    if eps > 1e-10 and whole(lacking).any():  # large random matrices come near that bound: look with more digits
        w, s, vh = torch.linalg.svd(a.to(torch.promote_types(a.dtype, torch.float64)), full_matrices=False)
        lacking = ~(gap(w, s, vh) > s[..., 0] * 4 * eps)
        w, s, vh = w.to(a.dtype), s.to(a.dtype.to_real()), vh.to(a.dtype)
    if (found := whole(lacking)).any():
        raise ValueError(
            f"no nearest orthonormal matrix: {int(found.sum())} of {found.numel()} matrices of shape "
            f"{tuple(a.shape[-2:])} {lack}. Start from another value: init='haar' or init='identity'."
        )
    return w, s, vh
