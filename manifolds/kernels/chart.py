"""Changing the chart of a trivialization: closed forms of what a covector in one chart is in another, and a solver.

See `Engine.recenter`, which these are. `least_squares` is what is left of it where there is no closed form.
Source: Saad, Iterative Methods for Sparse Linear Systems (2003), section 8.3.1, on CGNR.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import may_look, skew, sym
from .tiny import product

Linear = Callable[[Tensor], Tensor]
Square = Inexact[Tensor, "*batch n n"]
Points = Inexact[Tensor, "*batch n p"]

REACH = 3.0
TERMS = 24  # of even powers, the last below rounding where |ad| = 3: 3 / (2 pi) to the power of 48
ROUNDS = 32  # of conjugate gradients, at most: from |c| = 1 to rounding
BLIND = 8  # where a value would have to be waited for: at |c| = 1 each leaves a third of the error, or less


def cayley(c: Square, m: Square) -> Square:
    """(I - C/2) M (I + C/2) for skew C and M: with P = (I - C/2)^-1, X Cayley(C) moves by P^H dC P."""
    k = product(m, c, m, 0.5)
    return skew(product(c, k, k, -0.5))


def cayley_special(c: Square, m: Square) -> Square:
    """K - tr K / tr S S with K = (I - C/2) M (I + C/2), S = I - C^2/4: `cayley` where determinants are kept at 1."""
    k = cayley(c, m)
    s = product(c, c, alpha=-0.25)
    s.diagonal(dim1=-2, dim2=-1).add_(1)
    ratio = _trace(k) / _trace(s)
    return k - ratio[..., None, None] * s


def exponential(c: Square, m: Square) -> tuple[Square, Tensor]:
    """(sum_k B_k / k! ad_C^k M for skew C and M, with ad_C M = C M - M C and B_1 = -1/2; whether that is right).

    X exp(C) moves by the adjoint of what this inverts. The series ends at rounding where |ad_C| <= 3; M where it is
    longer.
    Source: Iserles, Munthe-Kaas, Norsett & Zanna, Lie-group methods (2000), section 2.6.
    """
    size = torch.linalg.vector_norm(c, dim=(-2, -1), keepdim=True) * 2**0.5  # of ad_C, at least
    short = size <= REACH
    scaled = torch.where(short, c, 0)
    total = m + _commutator(scaled, m) / -2
    power = m
    for b in _bernoulli():
        power = _commutator(scaled, _commutator(scaled, power))
        total = total + b * power
    return total, short


def exponential_of_any(c: Square, m: Square) -> Square:
    """`exponential` of any length, by eigenvalues: i(a - b) of ad_C for eigenvalues ia and ib of C, and z / (e^z - 1).

    That is infinite at the multiples of 2 pi i, where exp does not feel M: there it is 0, as in the shortest answer.
    """
    a, v = torch.linalg.eigh(1j * c)
    z = -1j * (a.unsqueeze(-1) - a.unsqueeze(-2))
    there = torch.expm1(z)
    felt = there.abs() > torch.finfo(c.dtype).eps ** 0.5 * z.abs()
    ratio = torch.where(felt, z / torch.where(felt, there, 1), torch.where(z == 0, 1, 0))
    k = v @ (ratio * (v.mH @ m.to(v.dtype) @ v)) @ v.mH
    return skew(k if m.is_complex() else k.real)


@functools.cache
def _bernoulli() -> list[float]:
    """B_2k / (2k)! for k = 1, 2, ..."""
    b = [Fraction(1)]
    for n in range(1, 2 * TERMS + 1):
        b.append(-sum((b[k] / math.factorial(n + 1 - k) for k in range(n)), Fraction(0)))
    return [float(each) for each in b[2::2]]


def _commutator(c: Square, m: Square) -> Square:
    """C M - M C for skew C and M."""
    k = c @ m
    return k - k.mH


def polar(x: Points, y: Points, c: Points, m: Points) -> Points:
    """The projection at Y of (M - 2 X Z) H with H = Y^H (X + C), N = X^H Y, and N^H Z + Z N = sym(Y^H M).

    For the tangent C = Y H - X changes by dY H + Y dH, where X^H C stays skew: X^H dY H + N dH is skew.
    """
    if x.shape[-2] < x.shape[-1]:
        return polar(x.mH, y.mH, c.mH, m.mH).mH
    h, n = sym(y.mH @ (x + c)), x.mH @ y
    z = least_squares(lambda z: 2 * sym(z @ n), lambda k: 2 * sym(n @ k), sym(y.mH @ m), 2)
    t = (m - 2 * x @ z) @ h
    return t - y @ sym(y.mH @ t)


def least_squares(of: Linear, adjoint: Linear, b: Tensor, ndim: int) -> Tensor:
    """The shortest t with of(t) = b, for b in the range but for rounding, point by point, by conjugate gradients."""
    looks, tiny = may_look(b), torch.finfo(b.dtype).tiny
    least = (4 * torch.finfo(b.dtype).eps) ** 2 * _squares(b, ndim)
    t, r, p = torch.zeros_like(b), b, adjoint(b)
    size = _squares(p, ndim)
    for _ in range(ROUNDS if looks else BLIND):
        going = size > least
        if looks and not bool(going.any()):
            break
        q = of(p)
        step = torch.where(going, size / _squares(q, ndim).clamp_min(tiny), 0)
        t, r = t + step * p, r - step * q
        s = adjoint(r)
        size, before = _squares(s, ndim), size
        p = s + size / before.clamp_min(tiny) * p
    return t


def is_long(c: Tensor, x: Tensor, ndim: int) -> bool:
    """Whether a point x has coordinates c with |C| > |X| / (3 k^(1/4)); see `Engine.is_long`."""
    if ndim == 0 or not x.numel():
        return False
    axes = tuple(range(-ndim, 0))
    scale, length = (torch.linalg.vector_norm(t, dim=axes) for t in (x, c))
    k = min(x.shape[axes[0] :]) if ndim > 1 else 1
    return bool((length > scale / (3 * k**0.25)).any())


def _trace(a: Square) -> Inexact[Tensor, "*batch"]:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def _squares(a: Tensor, ndim: int) -> Tensor:
    """|a|^2 of each point, shaped to multiply points."""
    squares = (a.conj() * a).real if a.is_complex() else a * a
    return squares.sum(tuple(range(-ndim, 0)), keepdim=True) if ndim else squares
