"""X -> X exp(A) for skew A: n x n products only there and back, where torch exponentiates a 2n x 2n block.

`plain` is the definition; the rest computes the same numbers. Forward: a polynomial at A / 2^s, then s squarings.
Backward: with Y = X exp(A), dA gets phi(ad_A) skew(Y^H G), phi(z) = (e^z - 1)/z. There phi(2z) = (e^z + 1)/2 phi(z)
walks the squarings back, and phi(z) = e^(z/2) sinhc(z/2) ends it with a polynomial that is even, and short.
Source: Higham, Functions of Matrices (2008), sections 10.3 and 10.6; Najfeld & Havel, Derivatives of the matrix
exponential and their computation (1995); Lanczos, Applied Analysis (1956), section 7.3, on telescoping.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import newton_schulz, skew
from .move import differentiable
from .tiny import largest_norm, product

REACH = 1.16  # a bound of |A / 2^s|: float32 then takes degree 8 for exp, and 8 for sinhc

Square = Inexact[Tensor, "*batch n n"]


def plain(x: Square, a: Square) -> Square:
    """X exp(A)."""
    return x @ matrix_exp(a)


def matrix_exp(a: Square) -> Square:
    """exp(A) by torch, never of one matrix alone: for that it takes a polynomial of degree 8 with a wrong coefficient,
    off by 2e-5 in float32 and 8e-11 in float64; github.com/pytorch/pytorch/issues/196592. Nor of a batch that is no
    view of one batch axis, which it refuses."""
    a = a.contiguous()
    alone = a.numel() == a.shape[-1] ** 2
    return torch.matrix_exp(a.expand(2, *a.shape))[0] if alone else torch.matrix_exp(a)


def _forward(x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """The move; exp(A/2), exp(A/4), ..., exp(A/2^s), the move by the first, and a bound of |A/2^s|; empty for small A.

    The roots are on a new axis before the last two.
    """
    norm = largest_norm(a)
    if _terms(norm, a.dtype) <= 4:
        none = a.new_empty(0)
        return _short(x, a), none, none, none
    roots, bound = _roots(a, norm)
    half = x @ roots[0]
    stacked = torch.stack(roots, -3) if len(roots) > 1 else roots[0].unsqueeze(-3)
    return half @ roots[0], stacked, half, torch.full(a.shape[:-2], bound, device=a.device)


def _pull_x(a: Tensor, grad: Tensor, roots: Tensor, *_: Tensor) -> Tensor:
    """G exp(-A)."""
    return grad @ roots[..., 0, :, :].mH @ roots[..., 0, :, :].mH if roots.numel() else _short(grad, -a)


def _pull_a(x: Tensor, a: Tensor, y: Tensor, grad: Tensor, roots: Tensor, half: Tensor, bound: Tensor) -> Tensor:
    """phi(ad_A) W with W = skew(Y^H G): the integral of exp(sA) W exp(-sA) over 0 <= s <= 1."""
    if not roots.numel():
        w = skew(product(y.mH, grad))
        return _commuted(a, w, [1 / math.factorial(k + 1) for k in range(1 + _terms(2 * largest_norm(a), a.dtype))])
    *chain, last = roots.unbind(-3)
    if chain:
        w = skew(y.mH @ grad)
        for root in chain:
            w = product(root @ w, root.mH, w).mul_(0.5)
        w = last @ w @ last.mH
    else:  # the same with one product less: last Y^H = (X last)^H
        w = skew(half.mH @ (grad @ last.mH))
    # z/2 = ad_A / 2^s, of norm up to 2 |A / 2^s|
    factors = _polynomial("sinhc", 2 * _rounded(float(bound.max())), 4 * torch.finfo(a.dtype).eps)
    return _commuted(a, w, [f / 2 ** (k * roots.shape[-3]) for k, f in enumerate(factors)])


exp_move = differentiable(plain, _forward, _pull_x, _pull_a)
"""X exp(A) for skew A: orthogonal if X is."""


def _short(x: Tensor, a: Tensor) -> Tensor:
    """X (I + A (I + A/2 (I + ...))) for small A."""
    y = x
    for k in range(_terms(largest_norm(a), a.dtype), 0, -1):
        y = product(y, a, x, 1 / k)
    return x.clone() if y is x else y


def _roots(a: Tensor, norm: float) -> tuple[list[Tensor], float]:
    """exp(A/2), exp(A/4), ..., exp(A/2^s), and a bound of |A/2^s|, given a coarse one of |A|."""
    early = max(0, math.frexp(norm)[1] - 8) if math.isfinite(norm) else 0
    powers = _powers(a / 2**early if early else a)  # the fourth power of a long A would overflow
    # for skew B, |B|^4 = |B^4|, and the singular values of real skew matrices come in pairs
    norm = (largest_norm(powers[3]) / (1 if a.is_complex() else math.sqrt(2))) ** (1 / 4)
    count = max(1 - early, math.ceil(math.log2(norm / REACH))) if math.isfinite(norm) and norm else 1 - early
    bound = norm / 2**count
    factors = [
        f / 2 ** (count * k) for k, f in enumerate(_polynomial("exp", _rounded(bound), torch.finfo(a.dtype).eps / 2))
    ]
    # Paterson & Stockmeyer: groups of four terms, Horner in the fourth power
    top = (len(factors) - 2) // 4 * 4
    e = powers[3] * (factors[top + 4] if len(factors) > top + 4 else 0)
    for start in range(top, -1, -4):
        e = e if start == top else powers[3] @ e
        e.diagonal(dim1=-2, dim2=-1).add_(factors[start])
        for p, f in zip(powers[:3], factors[start + 1 : start + 4], strict=False):
            e.add_(p, alpha=f)
    roots = [e]
    for k in range(1, early + count):
        e = roots[-1] @ roots[-1]
        roots.append(newton_schulz(e) if k % 3 == 2 else e)  # squaring doubles what rounding has added
    return roots[::-1], bound


def _powers(a: Tensor) -> list[Tensor]:
    """A, A^2, A^3, A^4 of skew A by two products: of A^2 (A + t A^2) the skew part is A^3, the Hermitian part t A^4."""
    square = a @ a
    size = math.sqrt(largest_norm(square))
    t = 1 / size if math.isfinite(size) and size else 1.0  # the parts are of one size then, and so are their errors
    both = square @ torch.add(a, square, alpha=t)
    return [a, square, skew(both), (both + both.mH).mul_(0.5 / t)]


def _commuted(a: Tensor, w: Tensor, factors: Sequence[float]) -> Tensor:
    """sum_k f_k ad_A^k W for skew W, which is overwritten."""
    total = w * factors[0]
    for f in factors[1:]:
        aw = product(a, w)
        torch.sub(aw, aw.mH, out=w)  # [A, W] = AW - (AW)^H where both are skew: one product
        if f:
            total.add_(w, alpha=f)
    return total


@functools.cache
def _polynomial(name: Literal["exp", "sinhc"], reach: float, error: float) -> tuple[float, ...]:
    """The coefficients of the shortest polynomial within `error` of exp(z), or sinh(z)/z, on [-i reach, i reach].

    Telescoping: from the Taylor series, multiples of the Chebyshev polynomials z^k + ... of that interval, of size
    2 (reach/2)^k there, are taken from the top as long as their sizes add up to less than the error.
    """
    if name == "exp":
        factors = [1 / math.factorial(k) for k in range(41)]
    else:
        factors = [0.0 if k % 2 else 1 / math.factorial(k + 1) for k in range(41)]
    chebyshev = [[2.0], [0.0, 1.0]]
    while len(chebyshev) < len(factors):
        before, last = chebyshev[-2:]
        chebyshev.append([s + reach**2 / 4 * t for s, t in zip([0.0, *last], [*before, 0.0, 0.0], strict=True)])
    while (error := error - abs(factors[-1]) * 2 * (reach / 2) ** (len(factors) - 1)) > 0 and len(factors) > 1:
        top = factors[-1]
        factors = [f - top * t for f, t in zip(factors, chebyshev[len(factors) - 1], strict=True)][:-1]
    return tuple(factors)


def _rounded(bound: float) -> float:
    """The next multiple of 1/16, of which there are few; REACH if the bound is not finite."""
    return math.ceil(16 * bound) / 16 if math.isfinite(bound) else REACH


def _terms(norm: float, dtype: torch.dtype) -> int:
    """The first k with norm^k / k! below rounding; many if the norm is not small."""
    if not norm < 1:  # also where it is NaN
        return 1000
    k, term = 0, 1.0
    while term > torch.finfo(dtype).eps / 4:
        k += 1
        term *= norm / k
    return k - 1 if k else 0
