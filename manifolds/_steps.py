"""One step of an optimizer on matrices with orthonormal columns (or rows): fewer products, fewer passes over memory.

`Manifold.mix` and `Manifold.advance` are the definitions. What is here computes the same numbers without derivatives,
and returns None where it does not apply. Shapes are (B, n, p); of a wide matrix the rows are what the columns are of
a tall one. In the formulas A = X^H G, S = (A + A^H) / 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import _cayley
from ._linalg import inverse_sqrt_near_one, may_look
from ._tiny import batch_last, norms, product

Points = Inexact[Tensor, "B n p"]
Numbers = Float[Tensor, " B"]
Size = float | Inexact[Tensor, "*B"]

FEW_DIGITS = 1 / 16
"""Below this part of |G|^2 the norm of the gradient is not the difference of |G|^2 and the normal part."""


def mix_square(
    x: Points, stored: Points, g: Points, keep: float, add: float, canonical: bool
) -> tuple[Points, Numbers]:
    """(keep M + add L, |L|^2) with L = skew(X^H G), twice that for the canonical metric. M is overwritten."""
    twice = product(batch_last(x).mH, batch_last(g))
    twice = twice - twice.mH
    mixed = stored.mul_(keep).add_(twice, alpha=add if canonical else add / 2)
    return mixed, norms(twice).square_().mul_(0.5 if canonical else 0.25)


def mix_tall(
    x: Points, stored: Points, g: Points, keep: float, add: float, canonical: bool
) -> tuple[Points, Numbers] | None:
    """(keep P(M) + add grad, |grad|^2) with P(M) = M - X sym(X^H M), grad = G - X S (canonical: G - X A^H).

    The projection is linear: three products in place of four, B - X N with B = keep M + add G and N the p x p sum
    of the normal parts. |grad|^2 is |G|^2 - |S|^2 (canonical: |G|^2 - Re tr A^2), or that of grad itself, where
    that difference has lost digits, near an optimum: one more product, two for the canonical metric. M is overwritten.
    """
    if not may_look(x):
        return None
    a, b = gram(x, g), gram(x, stored)
    twice_s = a + a.mH
    total = _squares(g)
    square = total - ((a * a.mT).sum((-2, -1)).real if canonical else _squares(twice_s) / 4)
    if bool((square < FEW_DIGITS * total).any()):
        grad = minus(g.clone(), x, a.mH, 1.0, 1.0) if canonical else minus(g.clone(), x, twice_s, 1.0, 0.5)
        square = _squares(grad) - (_squares(gram(x, grad)) / 2 if canonical else 0)  # of one rounding: never negative
    twice_n = (b + b.mH).mul_(keep).add_(a.mH if canonical else twice_s, alpha=2 * add if canonical else add)
    return minus(stored, x, twice_n, keep, 0.5).add_(g, alpha=add), square


def polar_step(x: Points, c: Points, size: Size) -> Points | None:
    """The polar factor of Y = X + size C, where Y^H Y is so near I that a few terms of (I + E)^(-1/2) are exact."""
    if not may_look(x):
        return None
    y = torch.addcmul(x, c, size) if isinstance(size, Tensor) else torch.add(x, c, alpha=float(size))
    e = gram(y, y)
    e.diagonal(dim1=-2, dim2=-1).sub_(1)
    r = inverse_sqrt_near_one(e)
    if r is None:
        return None
    return torch.bmm(r, y) if is_wide(x) else torch.bmm(y, r)


def cayley_step(x: Points, c: Points, size: Size) -> Points | None:
    """X (I - A/2)^-1 (I + A/2) for A = size C, past the cost of what records derivatives."""
    return _cayley.cayley_step(x, c * size) if may_look(x) else None


def is_wide(x: Tensor) -> bool:
    """Whether the rows are orthonormal, not the columns."""
    return x.shape[-2] < x.shape[-1]


def gram(x: Points, a: Points) -> Inexact[Tensor, "B p p"]:
    """X^H A; A X^H for wide matrices."""
    return torch.bmm(a, x.mH) if is_wide(x) else torch.bmm(x.mH, a)


def minus(a: Points, x: Points, s: Inexact[Tensor, "B p p"], keep: float, by: float) -> Points:
    """keep A - by X S, for wide matrices keep A - by S X; in the memory of A."""
    left, right = (s, x) if is_wide(x) else (x, s)
    return a.baddbmm_(left, right, beta=keep, alpha=-by)


def _squares(a: Tensor) -> Numbers:
    norms: Tensor = torch.linalg.vector_norm(a, dim=(-2, -1))
    return norms.square_()
