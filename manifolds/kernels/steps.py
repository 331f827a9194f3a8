"""One step of an optimizer on matrices with orthonormal columns (or rows): fewer products, fewer passes over memory.

`Manifold.mix` and `Manifold.advance` are the definitions. What is here computes the same numbers without derivatives,
and returns None where it does not apply. Shapes are (B, n, p), of square matrices (*batch, n, n); of a wide matrix the
rows are what the columns are of a tall one. In the formulas A = X^H G, S = (A + A^H) / 2.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .cayley import Size
from .linalg import inverse_sqrt_defect, may_look, newton_schulz
from .mend import MUCH, polish_reach
from .tiny import FEW, batch_last, is_batch_last, norms, skew_product, skew_squares

Points = Inexact[Tensor, "B n p"]
Numbers = Float[Tensor, " B"]

FEW_DIGITS = 1 / 16
"""Below this part of |G|^2 the norm of the gradient is not the difference of |G|^2 and the normal part."""


def mix_square(
    x: Points, stored: Points, g: Points, keep: float, add: float, canonical: bool
) -> tuple[Points, Numbers]:
    """(keep M + add L, |L|^2) with L = skew(X^H G), twice that for the canonical metric. M is overwritten."""
    if is_batch_last(x):
        g = batch_last(g)
    lifted = skew_product(x, g, 1.0 if canonical else 0.5)
    square = skew_squares(lifted, 0.5 if canonical else 1.0)
    return _mixed(stored, lifted, keep, add), square


def mix_tall(
    x: Points, stored: Points, g: Points, keep: float, add: float, canonical: bool
) -> tuple[Points, Numbers] | None:
    """(keep P(M) + add grad, |grad|^2) with P(M) = M - X sym(X^H M), grad = G - X S (canonical: G - X A^H).

    The projection is linear: three products in place of four, P(B) with B = keep M + add G, for the canonical metric
    P(B) - add X skew(A^H). |grad|^2 is |G|^2 - |S|^2 (canonical: |G|^2 - Re tr A^2), or that of grad itself, where
    that difference has lost digits, near an optimum: one more product, two for the canonical metric. M is overwritten.
    Of few numbers, where each call counts and a product with twice the columns takes no longer, P([G M]) at once.
    """
    if x.numel() < FEW and not canonical:
        return _mix_few(x, stored, g, keep, add, True)
    if not may_look(x):
        return None
    a = gram(x, g)
    twice_s = a + a.mH
    total = _squares(g)
    if canonical:
        square = total - (a * a.mT).sum((-2, -1)).real
    else:
        normal = norms(twice_s)
        square = torch.addcmul(total, normal, normal, value=-0.25)
    if not _keeps_digits(square, total):
        grad = minus(g.clone(), x, a.mH, 1.0, 1.0) if canonical else minus(g.clone(), x, twice_s, 1.0, 0.5)
        square = _squares(grad) - (_squares(gram(x, grad)) / 2 if canonical else 0)  # of one rounding: never negative
    b = _mixed(stored, g, keep, add)
    n = gram(x, b)
    twice_n = n + n.mH
    if canonical:
        twice_n.add_(a.mH - a, alpha=add)
    return minus(b, x, twice_n, 1.0, 0.5), square


def mix_horizontal(x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Numbers]:
    """(keep P(M) + add grad, |grad|^2) with P(M) = M - X X^H M and grad = P(G), as in `mix_tall`: |G|^2 - |A|^2. Where
    values may not be looked at, a fourth product gives grad itself.
    """
    if x.numel() < FEW:
        return _mix_few(x, stored, g, keep, add, False)
    a = gram(x, g)
    if not may_look(x):
        left, right = (a, x) if is_wide(x) else (x, a)
        grad = torch.baddbmm(g, left, right, alpha=-1)
        b = _mixed(stored, grad, keep, add)
        return minus(b, x, gram(x, b), 1.0, 1.0), _squares(grad)
    total, normal = _squares(g), norms(a)
    square = torch.addcmul(total, normal, normal, value=-1)
    if not _keeps_digits(square, total):
        square = _squares(minus(g.clone(), x, a, 1.0, 1.0))
    b = _mixed(stored, g, keep, add)
    return minus(b, x, gram(x, b), 1.0, 1.0), square


def _mix_few(x: Points, stored: Points, g: Points, keep: float, add: float, symmetric: bool) -> tuple[Points, Numbers]:
    axis = -2 if is_wide(x) else -1
    both = torch.cat((g, stored), axis)
    n = gram(x, both)
    if symmetric:  # 2 sym of each half
        n = _twice_sym(n)
    left, right = (n, x) if axis == -2 else (x, n)
    grad, m = both.baddbmm_(left, right, alpha=-0.5 if symmetric else -1).chunk(2, axis)
    square = (grad.conj() * grad).real if grad.is_complex() else grad * grad  # vector_norm is slow across memory
    return _mixed(m, grad, keep, add, stored), square.sum((-2, -1))


def _twice_sym(n: Tensor) -> Tensor:
    """[A + A^H, C + C^H] of [A C], next to each other or one on the other."""
    b, k, p = n.shape
    if k > p:
        halves = n.view(b, 2, p, p)
        return (halves + halves.mH).view(b, k, p)
    halves = n.view(b, k, 2, k)
    return (halves + halves.transpose(1, 3).conj()).view(b, k, p)


def polar_step(x: Points, c: Points, size: Size) -> Points | None:
    """The polar factor of Y = X + size C, by (I + E)^(-1/2) with I + E = Y^H Y: a few terms of its series, or eigh.
    None also where the condition of Y^H Y is more than one polish mends."""
    if not may_look(x):
        return None
    return polar_factor(torch.addcmul(x, c, size) if isinstance(size, Tensor) else torch.add(x, c, alpha=size))


def straightened(x: Points, a: Points) -> Points:
    """A - X sym(X^H A), in the memory of A: each new n x p is pages that memory is asked for."""
    n = gram(x, a)
    return minus(a, x, n + n.mH, 1.0, 0.5)


def polar_factor(y: Points) -> Points | None:
    """That of Y near orthonormal; None where the condition of Y^H Y is more than one polish mends. Looks at values."""
    wide = is_wide(y)
    t = inverse_sqrt_defect(e := off(y, looks=True), looks=True)
    if t is not None:
        return torch.baddbmm(y, t, y, alpha=-0.5) if wide else torch.baddbmm(y, y, t, alpha=-0.5)
    values, q = torch.linalg.eigh(e)
    few = values.tolist()[0] if e.shape[0] == 1 else [value.item() for value in values.aminmax()]
    low, high = 1 + few[0], 1 + few[-1]
    condition = max(high, 1 / low) if low > 0 else math.inf
    if not condition <= polish_reach(e.dtype):  # also where they are NaN
        return None
    r = torch.bmm(q * (1 + values).rsqrt().unsqueeze(-2), q.mH)
    y = torch.bmm(r, y) if wide else torch.bmm(y, r)
    if condition <= MUCH:
        return y
    if y.shape[0] > 1:
        return newton_schulz(y)
    e = off(y, looks=True)  # the same, of one matrix in two calls
    return torch.baddbmm(y, e, y, alpha=-0.5) if wide else torch.baddbmm(y, y, e, alpha=-0.5)


def is_wide(x: Tensor) -> bool:
    """Whether the rows are orthonormal, not the columns."""
    return x.shape[-2] < x.shape[-1]


def gram(x: Points, a: Points) -> Inexact[Tensor, "B p p"]:
    """X^H A; A X^H for wide matrices."""
    return torch.bmm(a, x.mH) if is_wide(x) else torch.bmm(x.mH, a)


def off(y: Points, looks: bool = False) -> Inexact[Tensor, "B p p"]:
    """Y^H Y - I; Y Y^H - I for wide matrices. looks: it is known that values may be looked at."""
    p = min(y.shape[-2:])
    if looks and p * p < FEW:  # one call in place of three
        left, right = (y, y.mH) if is_wide(y) else (y.mH, y)
        return torch.baddbmm(_eye(p, y.dtype), left, right, beta=-1)
    e = gram(y, y)
    e.diagonal(dim1=-2, dim2=-1).sub_(1)
    return e


@functools.lru_cache(maxsize=256)
def _eye(p: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(p, dtype=dtype, device="cpu")


def minus(a: Points, x: Points, s: Inexact[Tensor, "B p p"], keep: float, by: float) -> Points:
    """keep A - by X S, for wide matrices keep A - by S X; in the memory of A."""
    left, right = (s, x) if is_wide(x) else (x, s)
    return a.baddbmm_(left, right, beta=keep, alpha=-by)


def _keeps_digits(square: Numbers, total: Numbers) -> bool:
    """Whether the difference `square` of |G|^2 = total and something else is no small part of it, for any point."""
    if total.numel() == 1:  # two numbers in place of three calls of torch
        return square.item() - FEW_DIGITS * total.item() >= 0  # not so for Inf - Inf
    return torch.sub(square, total, alpha=FEW_DIGITS).amin().item() >= 0


def _mixed(m: Points, c: Points, keep: float, add: float, out: Points | None = None) -> Points:
    """keep M + add C, in the memory of out, that of M if None. Where C is recorded torch takes no out=."""
    if keep + add == 1 and out is not None and not torch.is_grad_enabled():
        return torch.lerp(m, c, add, out=out)
    m = m if out is None else out.copy_(m)
    return m.lerp_(c, add) if keep + add == 1 else m.mul_(keep).add_(c, alpha=add)


def _squares(a: Tensor) -> Numbers:
    return norms(a).square_()
