"""Short steps by products alone, for accelerators: a factorization there costs as much as ten products or more.

Each comes with its defect e, how far the matrix that it begins with is from orthonormal: up to `TURNED` and `PULLED`
the result is exact to rounding in float32, beyond it is wrong, and whoever calls must see to that. Nothing is looked
at, and there are no derivatives. Shapes are (B, n, p); rows are to wide matrices what columns are to tall ones.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .cayley import Size
from .steps import gram, is_wide, off

Points = Inexact[Tensor, "B n p"]
Defect = Float[Tensor, " B"]


def _binomial(k: int) -> float:
    """The k-th coefficient of (1 + z)^(-1/2)."""
    return math.prod((1 - 2 * j) / (2 * j) for j in range(1, k + 1))


TURNED = (2.0**-23) ** 0.25  # two steps of Newton-Schulz take e to 27/64 e^4
PULLED = 0.3
SERIES = tuple(_binomial(k) / (1 + PULLED / 2) ** k for k in range(1, 8))
"""Of (1 + e)^(-1/2) (1 + h)^(1/2) - 1 in powers of e - h, h = PULLED / 2."""


def turned(x: Points, c: Points, size: Size) -> tuple[Points, Defect]:
    """The polar factor of X (I + A + A^2/2) for A = size C, C skew: second order. e = |A^4| / 4. Six products."""
    first = torch.bmm(x, c)
    y = _plus(x, first, size)
    y = _plus(y, torch.bmm(first, c), size * size / 2)
    e = off(y)
    defect = torch.linalg.vector_norm(e, dim=(-2, -1))
    y = torch.baddbmm(y, y, e, alpha=-0.5)
    return torch.baddbmm(y, y, off(y), alpha=-0.5), defect


def turned_defect(c: Points, size: Size) -> Defect:
    """e of `turned`."""
    square = torch.bmm(c, c)
    return _sized(torch.linalg.vector_norm(torch.bmm(square, square), dim=(-2, -1)) / 4, size, 4)


def pulled(x: Points, c: Points, size: Size) -> tuple[Points, Defect]:
    """The polar factor Y (I + E)^(-1/2) of Y = X + size C for tangent C, I + E = Y^H Y. e = |E|. Two products n x p."""
    y = _plus(x, c, size)
    e = off(y)
    defect = torch.linalg.vector_norm(e, dim=(-2, -1))
    # about the middle of [0, PULLED], where the eigenvalues of E are: what the series leaves out is 0.2 (h / (1 + h))^8
    h = PULLED / 2
    e.diagonal(dim1=-2, dim2=-1).sub_(h)
    t = e * SERIES[-1]
    for factor in SERIES[-2::-1]:
        t = torch.baddbmm(e, e, t, beta=factor)
    by, (left, right) = (1 + h) ** -0.5, (t, y) if is_wide(x) else (y, t)
    return torch.baddbmm(y, left, right, beta=by, alpha=by), defect


def pulled_defect(c: Points, size: Size) -> Defect:
    """e of `pulled`."""
    return _sized(torch.linalg.vector_norm(gram(c, c), dim=(-2, -1)), size, 2)


def _plus(x: Tensor, y: Tensor, size: Size) -> Tensor:
    return torch.addcmul(x, y, size) if isinstance(size, Tensor) else torch.add(x, y, alpha=size)


def _sized(defect: Defect, size: Size, power: int) -> Defect:
    by = size.reshape(-1) if isinstance(size, Tensor) else size
    return defect * by**power
