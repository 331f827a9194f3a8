"""Positive semidefinite matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from ..base import check_ndim
from ..euclidean import Euclidean
from ._svd import checked
from .base import Composition, Parts

Square = Inexact[Tensor, "*batch n n"]


@dataclass(frozen=True)
class PositiveSemidefinite(Composition):
    """A A^H with a free A (n x r): positive semidefinite of rank at most r, Hermitian for complex tensors.

    rank: r, None for n. Eigenvalues may coincide and vanish. Where a column of A is zero its gradient is, too: a start
    of lower rank is taken with eigenvalues of eps times the largest in their place, to rounding the same matrix.
    Source: Burer & Monteiro, A nonlinear programming algorithm for solving semidefinite programs (2003).

    >>> w = PositiveSemidefinite(rank=2).random(5, 5)
    >>> bool((torch.linalg.eigvalsh(w) >= -1e-5).all())
    True
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and (not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1):
            raise ValueError(f"rank of PositiveSemidefinite is a number, 1 or more, or None; got {self.rank!r}.")

    def parts(self, shape: Sequence[int]) -> Parts:
        """a: Euclidean (n, r). Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        r = n if self.rank is None else self.rank
        if n != m or r > n:
            raise ValueError(f"{self} needs square matrices of size {r} or more; got shape {tuple(shape)}.")
        return {"a": (Euclidean(), (*tuple(shape)[:-1], r))}

    def compose(self, *, a: Tensor) -> Square:  # type: ignore[override]
        """A A^H."""
        return a @ a.mH

    def decompose(self, x: Square) -> dict[str, Tensor]:
        """The r largest eigenvalues, cut at 0, and their vectors: of the nearest matrix of the set."""
        r = x.shape[-1] if self.rank is None else self.rank
        wide = checked(x)
        values, vectors = torch.linalg.eigh((wide + wide.mH) / 2)
        largest = values[..., -1:].clamp_min(0)
        tiny = torch.finfo(x.dtype).eps * torch.where(largest > 0, largest, 1)
        values = torch.maximum(values[..., -r:], tiny)
        return {"a": (vectors[..., -r:] * values.sqrt().unsqueeze(-2)).to(x.dtype)}
