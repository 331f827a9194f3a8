"""X -> X exp(A) for skew A: n x n products only there and back, where torch exponentiates a 2n x 2n block.

`plain` is the definition; the rest computes the same numbers. Forward: Taylor at A / 2^s, then s squarings. Backward:
with Y = X exp(A), dA gets phi(ad_A) skew(Y^H G), phi(z) = (e^z - 1)/z, where phi(2z) = (e^z + 1)/2 phi(z) walks the
squarings back and a short series ends it. Source: Higham, Functions of Matrices (2008), sections 10.3 and 10.6;
Najfeld & Havel, Derivatives of the matrix exponential and their computation (1995).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._linalg import newton_schulz, skew
from ._move import Move, differentiable
from ._tiny import norms, product

Square = Inexact[Tensor, "*batch n n"]


def plain(x: Square, a: Square) -> Square:
    """X exp(A)."""
    return x @ matrix_exp(a)


def matrix_exp(a: Square) -> Square:
    """exp(A) by torch, never of one matrix alone: for that it takes a polynomial of degree 8 with a wrong coefficient,
    off by 2e-5 in float32 and 8e-11 in float64; github.com/pytorch/pytorch/issues/196592."""
    alone = a.numel() == a.shape[-1] ** 2
    return torch.matrix_exp(a.expand(2, *a.shape))[0] if alone else torch.matrix_exp(a)


def _forward(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The move, and `_roots` of A."""
    roots = _roots(a)
    return _apply(x, a, roots), roots


def _pull_x(a: Tensor, grad: Tensor, roots: Tensor) -> Tensor:
    """G exp(-A)."""
    return _apply(grad, -a, roots.mH if roots.numel() else roots)


def _pull_a(x: Tensor, a: Tensor, y: Tensor, grad: Tensor, roots: Tensor) -> Tensor:
    """phi(ad_A) W with W = skew(Y^H G): the integral of exp(sA) W exp(-sA) over 0 <= s <= 1."""
    w = skew(product(y.mH, grad))
    chain = roots.unbind(-3) if roots.numel() else ()
    for root in chain:
        w = product(root @ w, root.mH, w).mul_(0.5)
    b = a / 2 ** len(chain)
    total, term = w.clone(), w
    for k in range(1, 1 + _terms(0.6 if chain else 2 * _norm(b, 1), a.dtype)):
        term = product(b, term)
        term = term - term.mH  # [B, W] = BW - (BW)^H where both are skew: one product
        total.add_(term, alpha=1 / math.factorial(k + 1))
    return total


def _push_a(move: Move, x: Tensor, a: Tensor, da: Tensor) -> Tensor:
    """X D, where exp([[A, dA], [0, A]]) = [[exp(A), D], [0, exp(A)]]."""
    n = a.shape[-1]
    a, da = torch.broadcast_tensors(a, da)
    block = torch.cat([torch.cat([a, da], -1), torch.cat([torch.zeros_like(a), a], -1)], -2)
    return x @ matrix_exp(block)[..., :n, n:]


exp_move = differentiable(plain, _forward, _pull_x, _pull_a, _push_a)
"""X exp(A) for skew A: orthogonal if X is."""


def _apply(x: Tensor, a: Tensor, roots: Tensor) -> Tensor:
    """X exp(A), given `_roots` of A: two products, or X (I + A (I + A/2 (I + ...))) where A is small."""
    if roots.numel():
        return x @ roots[..., 0, :, :] @ roots[..., 0, :, :]
    y = x
    for k in range(_terms(_norm(a, 1), a.dtype), 0, -1):
        y = product(y, a, x, 1 / k)
    return x.clone() if y is x else y


def _roots(a: Tensor) -> Tensor:
    """exp(A/2), exp(A/4), ..., exp(A/2^s), on a new axis before the last two; empty where |A| is small."""
    double = torch.finfo(a.dtype).eps < 1e-10
    reach, power, degree = (0.3, 4, 12) if double else (0.25, 3, 6)
    if _terms(_norm(a, 1), a.dtype) <= 4:
        return a.new_empty(0)
    powers = [a, a @ a]
    while len(powers) < power:
        powers.append(powers[-1] @ a)
    norm = _norm(powers[-1], power)
    count = max(1, math.ceil(math.log2(norm / reach))) if math.isfinite(norm) else 1
    # Paterson & Stockmeyer: groups of `power` terms, Horner in the last power
    factors = [1 / math.factorial(k) / 2 ** (count * k) for k in range(degree + 1)]
    e = powers[-1] * factors[degree]
    for start in range(degree - power, -1, -power):
        e.diagonal(dim1=-2, dim2=-1).add_(factors[start])
        for k, p in enumerate(powers[:-1], start + 1):
            e.add_(p, alpha=factors[k])
        e = powers[-1] @ e if start else e
    roots = [e]
    for k in range(1, count):
        e = e @ e
        roots.append(newton_schulz(e) if k % 4 == 0 else e)  # squaring doubles what rounding has added
        e = roots[-1]
    return torch.stack(roots[::-1], -3)


def _norm(p: Tensor, power: int) -> float:
    """A bound of |A| from P = A^power: for skew A, |A|^k = |A^k| <= |A^k|_F."""
    return float(norms(p).max().item() ** (1 / power)) if p.numel() else 0.0


def _terms(norm: float, dtype: torch.dtype) -> int:
    """The first k with norm^k / k! below rounding; many if the norm is not small."""
    if not norm < 1:  # also where it is NaN
        return 1000
    k, term = 0, 1.0
    while term > torch.finfo(dtype).eps / 4:
        k += 1
        term *= norm / k
    return k - 1 if k else 0
