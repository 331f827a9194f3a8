"""X -> X (I - A/2)^-1 (I + A/2) for skew A, with its own backward: one factorization for both ways.

`plain` is the definition; the rest computes the same numbers, by a series where A is small, in closed form where it
is 2 x 2 or 3 x 3, by LU elsewhere. Which one is decided in `_right_solve`, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._linalg import LU_BATCH, eye_like, resolvent, without_autocast

Square = Inexact[Tensor, "*batch n n"]


def cayley_move(x: Square, a: Square) -> Square:
    """X (I - A/2)^-1 (I + A/2) for skew A: orthogonal if X is."""
    if torch.compiler.is_compiling():
        return plain(x, a)
    return _Cayley.apply(x, a)[0]  # type: ignore[no-any-return, no-untyped-call]


def plain(x: Square, a: Square) -> Square:
    """2 X (I - A/2)^-1 - X."""
    return 2 * x @ resolvent(a) - x


class _Cayley(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a = torch.broadcast_tensors(x, a)
        half, lu, pivots = _right_solve(x, a)
        return half.mul_(2).sub_(x), lu, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        x, a, y, lu, pivots = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is that of the definition
            return torch.func.vjp(plain, x, a)[1](grad)  # type: ignore[no-any-return]
        grad_x = 2 * _adjoint_solve(grad, a, lu, pivots) - grad if ctx.needs_input_grad[0] else None
        # dY = (Y + X)/2 dA (I - A/2)^-1, so dA gets ((Y + X)/2)^H G (I - A/2)^-H
        grad_a = _adjoint_solve((x + y).mH @ grad / 2, a, lu, pivots) if ctx.needs_input_grad[1] else None
        return grad_x, grad_a

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, a: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x, a = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((x, a), in_dims, strict=True)
        )
        y, lu, pivots = _Cayley.apply(x, a)  # type: ignore[no-untyped-call]
        lu, pivots = (t if t.numel() else t.expand(info.batch_size, 0) for t in (lu, pivots))
        return (y, lu, pivots), (0, 0, 0)


def _right_solve(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B (I - A/2)^-1 for skew A, and the LU factors and pivots of I + A/2 = (I - A/2)^H, empty unless made."""
    n, none = a.shape[-1], a.new_empty(0)
    if n <= 3 and not a.is_complex():
        return _tiny(b, a), none, none
    if a.device.type != "cpu":
        return b @ resolvent(a), none, none
    terms = _terms(a)
    if terms <= (2 if n >= LU_BATCH else 12):
        s = b.clone() if terms == 0 else b
        for _ in range(terms):  # S = B + S A/2, again and again: B (I + A/2 + A^2/4 + ...)
            s = add_product(b, s, a, 0.5)
        return s, none, none
    # LU divides by an infinite pivot as if all were well: let a matrix that is not finite give NaN
    b = b + (0 * a).sum((-2, -1), keepdim=True)
    lu, pivots = _lu(eye_like(a) + a / 2)
    # B (I - A/2)^-1 is the adjoint of (I + A/2)^-1 B^H
    return _lu_solve(lu, pivots, b.mH).mH.contiguous(), lu, pivots


def _adjoint_solve(b: Tensor, a: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """B (I - A/2)^-H = B (I + A/2)^-1, with the factors that `_right_solve` made."""
    if not lu.numel():
        return _right_solve(b, -a)[0]
    return _lu_solve(lu, pivots, b.mH, adjoint=True).mH


def _tiny(b: Tensor, a: Tensor) -> Tensor:
    """A^3 = -t^2 A with t^2 = |A|^2 / 2, so (I - A/2)^-1 = I + (A/2 + A^2/4) / (1 + t^2/4)."""
    scale = 1 + (a * a).sum((-2, -1), keepdim=True) / 8
    z = b @ a
    return torch.addcdiv(b, add_product(2 * z, z, a, 1), 4 * scale)


def _terms(a: Tensor) -> int:
    """How many terms of sum (A/2)^k leave a remainder below rounding, from the norm of A; many if A is not small."""
    norm = torch.linalg.vector_norm(a, dim=(-2, -1)).max().item() / 2 if a.numel() else 0.0
    if norm == 0:
        return 0
    if not norm < 0.5:  # also where it is NaN
        return 1000
    return max(1, math.ceil(math.log(torch.finfo(a.dtype).eps / 4) / math.log(norm)) - 1)


def add_product(c: Tensor, b: Tensor, a: Tensor, alpha: float) -> Tensor:
    """C + alpha B A in one pass."""
    shape = c.shape
    c, b, a = (t.reshape(-1, *t.shape[-2:]) for t in (c, b, a))
    return torch.baddbmm(c, b, a, alpha=alpha).reshape(shape)


def _lu(m: Tensor) -> tuple[Tensor, Tensor]:
    if m.dim() == 2 or m.shape[-1] < LU_BATCH:
        lu, pivots = torch.linalg.lu_factor(m)
        return lu, pivots
    factors = [torch.linalg.lu_factor(one) for one in m.reshape(-1, *m.shape[-2:])]
    lu, pivots = (torch.stack([f[i] for f in factors]) for i in (0, 1))
    return lu.reshape(m.shape), pivots.reshape(m.shape[:-1])


def _lu_solve(lu: Tensor, pivots: Tensor, b: Tensor, adjoint: bool = False) -> Tensor:
    if lu.dim() == 2 or lu.shape[-1] < LU_BATCH:
        return torch.linalg.lu_solve(lu, pivots, b, adjoint=adjoint)  # type: ignore[no-any-return]
    each = zip(*(t.flatten(0, t.dim() - k) for t, k in ((lu, 3), (pivots, 2), (b, 3))), strict=True)
    return torch.stack([torch.linalg.lu_solve(f, p, r, adjoint=adjoint) for f, p, r in each]).reshape(b.shape)
