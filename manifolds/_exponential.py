"""X -> X exp(A) for skew A, with its own backward: n x n products only, where torch exponentiates a 2n x 2n block.

`plain` is the definition; the rest computes the same numbers. Forward: Taylor at A / 2^s, then s squarings. Backward:
with Y = X exp(A), dA gets phi(ad_A) skew(Y^H G), phi(z) = (e^z - 1)/z, where phi(2z) = (e^z + 1)/2 phi(z) walks the
squarings back and a short series ends it. Source: Higham, Functions of Matrices (2008), sections 10.3 and 10.6;
Najfeld & Havel, Derivatives of the matrix exponential and their computation (1995).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._cayley import add_product
from ._linalg import eye_like, skew, without_autocast

Square = Inexact[Tensor, "*batch n n"]


def exp_move(x: Square, a: Square) -> Square:
    """X exp(A) for skew A: orthogonal if X is."""
    if torch.compiler.is_compiling():
        return plain(x, a)
    return _Exp.apply(x, a)[0]  # type: ignore[no-any-return, no-untyped-call]


def plain(x: Square, a: Square) -> Square:
    """X exp(A)."""
    return x @ matrix_exp(a)


def matrix_exp(a: Square) -> Square:
    """exp(A) by torch, never of one matrix alone: for that it takes a polynomial of degree 8 with a wrong coefficient,
    off by 2e-5 in float32 and 8e-11 in float64; github.com/pytorch/pytorch/issues/196592."""
    alone = a.numel() == a.shape[-1] ** 2
    return torch.matrix_exp(a.expand(2, *a.shape))[0] if alone else torch.matrix_exp(a)


class _Exp(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        x, a = torch.broadcast_tensors(x, a)
        roots = _roots(a)
        return _apply(x, a, roots), roots

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        x, a, y, roots = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is that of the definition
            return torch.func.vjp(plain, x, a)[1](grad)  # type: ignore[no-any-return]
        grad_x = _apply(grad, -a, roots.mH) if ctx.needs_input_grad[0] else None
        return grad_x, _phi(a, roots, skew(y.mH @ grad)) if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, a: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x, a = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((x, a), in_dims, strict=True)
        )
        return _Exp.apply(x, a), (0, 1)  # type: ignore[no-untyped-call]


def _apply(x: Tensor, a: Tensor, roots: Tensor) -> Tensor:
    """X exp(A), given `_roots` of A: two products, or X (I + A (I + A/2 (I + ...))) where A is small."""
    if len(roots):
        return x @ roots[0] @ roots[0]
    y = x
    for k in range(_terms(_norm(a, 1), a.dtype), 0, -1):
        y = add_product(x, y, a, 1 / k)
    return x.clone() if y is x else y


def _roots(a: Tensor) -> Tensor:
    """exp(A/2), exp(A/4), ..., exp(A/2^s), one after another on a new first axis; none where |A| is small."""
    double = torch.finfo(a.dtype).eps < 1e-10
    reach, power, degree = (0.3, 4, 12) if double else (0.25, 3, 6)
    if _terms(_norm(a, 1), a.dtype) <= 4:
        return a.new_empty(0, *a.shape)
    powers = [a, a @ a]
    while len(powers) < power:
        powers.append(powers[-1] @ a)
    norm = _norm(powers[-1], power)
    count = max(1, math.ceil(math.log2(norm / reach))) if math.isfinite(norm) else 1
    powers = [eye_like(a), *(p / 2 ** (count * (k + 1)) for k, p in enumerate(powers))]
    # Paterson & Stockmeyer: groups of `power` terms, Horner in the last power
    e = powers[power] / math.factorial(degree)
    for start in range(degree - power, -1, -power):
        e = e + sum((p / math.factorial(start + k) for k, p in enumerate(powers[:power])), torch.zeros_like(a))
        e = powers[power] @ e if start else e
    roots = [e]
    for _ in range(count - 1):
        roots.append(roots[-1] @ roots[-1])
    return torch.stack(roots[::-1])


def _phi(a: Tensor, roots: Tensor, w: Tensor) -> Tensor:
    """phi(ad_A) W for skew W: the integral of exp(sA) W exp(-sA) over 0 <= s <= 1."""
    for root in roots:
        w = (w + root @ w @ root.mH) / 2
    b = a / 2 ** len(roots)
    total, term = w.clone(), w
    for k in range(1, 1 + _terms(2 * _norm(b, 1) if not len(roots) else 0.6, a.dtype)):
        term = b @ term
        term = (term - term.mH) / (k + 1)  # [B, W] = BW - (BW)^H where both are skew: one product
        total += term
    return total


def _norm(p: Tensor, power: int) -> float:
    """A bound of |A| from P = A^power: for skew A, |A|^k = |A^k| <= |A^k|_F."""
    return float(torch.linalg.vector_norm(p, dim=(-2, -1)).max().item() ** (1 / power)) if p.numel() else 0.0


def _terms(norm: float, dtype: torch.dtype) -> int:
    """The first k with norm^k / k! below rounding; many if the norm is not small."""
    if not norm < 1:  # also where it is NaN
        return 1000
    k, term = 0, 1.0
    while term > torch.finfo(dtype).eps / 4:
        k += 1
        term *= norm / k
    return k - 1 if k else 0
