"""Invertible matrices of positive determinant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from ..base import check_ndim
from ..kernels.linalg import sym
from ..kernels.others import OTHERS
from ..orthogonal import SpecialOrthogonal
from ..positive_definite import PositiveDefinite
from ._svd import checked, each
from .base import Composition, Parts

Square = Inexact[Tensor, "*batch n n"]


@dataclass(frozen=True)
class Invertible(Composition):
    """Q P with a rotation Q and a positive definite P: invertible, of positive determinant.

    Each such matrix is one product, its polar decomposition. Complex matrices are those whose determinant is real and
    positive, with Q in SU(n).
    Source: Higham, Functions of Matrices (2008), chapter 8.

    >>> bool(torch.linalg.det(Invertible().random(3, 3)) > 0)
    True
    """

    def parts(self, shape: Sequence[int]) -> Parts:
        """q: SpecialOrthogonal (n, n), p: PositiveDefinite (n, n). Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        if n != m:
            raise ValueError(f"{self} needs square matrices; got shape {tuple(shape)}.")
        return {"q": (SpecialOrthogonal(), tuple(shape)), "p": (PositiveDefinite(), tuple(shape))}

    def compose(self, *, q: Square, p: Square) -> Square:  # type: ignore[override]
        """Q P."""
        return q @ p

    def decompose(self, x: Square) -> dict[str, Tensor]:
        """The polar decomposition. Raises ValueError where a determinant is not positive, or a matrix singular."""
        wide = checked(x)
        signs = each(lambda a: torch.linalg.slogdet(a)[0], wide, wide[..., 0, 0])
        wrong = (signs - 1).abs() > torch.finfo(x.dtype).eps ** 0.5
        if bool(wrong.any()):
            raise ValueError(
                f"{int(wrong.sum())} of {signs.numel()} matrices of shape {tuple(x.shape[-2:])} have a determinant "
                f"that is not positive, and no path of invertible ones leads there. {_mended(wide[wrong])}"
            )
        q = SpecialOrthogonal().nearest(wide)
        p = sym(q.mH @ wide)
        if not bool(PositiveDefinite().contains(p.to(x.dtype)).all()):
            raise ValueError(f"a matrix of shape {tuple(x.shape)} is singular to rounding. {OTHERS}")
        return {"q": q.to(x.dtype), "p": p.to(x.dtype)}


def _mended(wrong: Square) -> str:
    """What makes the determinants of these positive, if anything does."""
    s = each(torch.linalg.svdvals, wrong, wrong[..., 0].abs())
    if bool((s[..., -1] <= s[..., 0] * s.shape[-1] * torch.finfo(s.dtype).eps).any()):
        return OTHERS
    return "Divide a row of each by det / |det|." if wrong.is_complex() else "Flip the sign of a row of each."
