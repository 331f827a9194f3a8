"""The nearest matrix with orthonormal columns (rows), and random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import may_wait, newton_schulz
from .others import OTHERS
from .polar import factor
from .transforms import whole


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
    look = may_wait(a)
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
            f"{tuple(a.shape[-2:])} {lack}. {OTHERS}"
        )
    return w, s, vh
