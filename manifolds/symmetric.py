"""Symmetric and skew-symmetric matrices; Hermitian and skew-Hermitian for complex tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Inexact
from torch import Tensor

from ._points import broadcast
from .base import check_ndim
from .linear import LinearSpace

Square = Inexact[Tensor, "*batch n n"]


@dataclass(frozen=True)
class Symmetric(LinearSpace):
    """Square matrices (..., n, n) with X = X^H, with the metric Re tr(U^H V): a linear space, T_X = the space itself.

    Raises ValueError for matrices that are not square.
    Source: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), section 3.2.

    >>> Symmetric().nearest(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """

    ndim = 2

    def project(self, x: Square, a: Square) -> Square:
        """(A + A^H) / 2."""
        x, a = broadcast(self, x, a)
        _sides("Symmetric", a.shape)
        return (a + a.mH) / 2

    def dim(self, shape: Sequence[int]) -> int:
        """n (n + 1) / 2 for each matrix."""
        count, n = _sides("Symmetric", shape)
        return count * (n * (n + 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """n^2 for each matrix."""
        count, n = _sides("Symmetric", shape)
        return count * n**2


@dataclass(frozen=True)
class Skew(LinearSpace):
    """Square matrices (..., n, n) with X = -X^H, with the metric Re tr(U^H V): a linear space, T_X = the space itself.

    The imaginary parts of a complex diagonal are free. Raises ValueError for matrices that are not square.
    Source: as for `Symmetric`.

    >>> Skew().nearest(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """

    ndim = 2

    def project(self, x: Square, a: Square) -> Square:
        """(A - A^H) / 2."""
        x, a = broadcast(self, x, a)
        _sides("Skew", a.shape)
        return (a - a.mH) / 2

    def dim(self, shape: Sequence[int]) -> int:
        """n (n - 1) / 2 for each matrix."""
        count, n = _sides("Skew", shape)
        return count * (n * (n - 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """n^2 for each matrix."""
        count, n = _sides("Skew", shape)
        return count * n**2


def _sides(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """(number of matrices, n)."""
    count, (n, m) = check_ndim(name, shape, 2)
    if n != m:
        such = f", such as {name}**{n // m}" if n % m == 0 and len(shape) == 2 else ""
        raise ValueError(
            f"{name} holds square matrices; got shape {tuple(shape)}. Use a product with a layout that cuts the tensor "
            f"into square blocks{such}."
        )
    return count, n
