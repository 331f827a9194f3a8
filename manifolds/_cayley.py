"""X -> X (I - A/2)^-1 (I + A/2) for skew A: one factorization for the way there and back.

`plain` is the definition; the rest computes the same numbers, in closed form where A is real and at most 3 x 3, by a
series where it is small, by LU elsewhere. Which one is decided in `_forward`, and nowhere else.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._linalg import LU_BATCH, eye_like, resolvent
from ._move import Move, differentiable
from ._tiny import is_batch_last, norms, product, turned

Square = Inexact[Tensor, "*batch n n"]


def plain(x: Square, a: Square) -> Square:
    """2 X (I - A/2)^-1 - X."""
    return 2 * x @ resolvent(a) - x


def _forward(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The move, and the LU factors and pivots of I + A/2 = (I - A/2)^H, empty unless made."""
    n, none = a.shape[-1], a.new_empty(0)
    if n <= 3 and not a.is_complex():
        if is_batch_last(x) and is_batch_last(a):
            return turned(x, a), none, none
        # A^3 = -t^2 A with t^2 = -tr(A^2)/2, so X moves by X (A + A^2/2) / (1 + t^2/4)
        step = product(a, a, a, 0.5)
        scale = 1 - step.diagonal(dim1=-2, dim2=-1).sum(-1) / 4
        return product(x, step.mul_(scale.reciprocal_()[..., None, None]), x), none, none
    if a.device.type != "cpu":
        return 2 * x @ resolvent(a) - x, none, none
    terms = _terms(a)
    if terms <= (2 if n >= LU_BATCH else 12):  # X + X (I + A/2 + A^2/4 + ...) A
        half = x
        for _ in range(terms - 1):
            half = product(half, a, x, 0.5)
        return product(half, a, x) if terms else x.clone(), none, none
    # LU divides by an infinite pivot as if all were well: let a matrix that is not finite give NaN
    x = x + (0 * a).sum((-2, -1), keepdim=True)
    lu, pivots = _lu(eye_like(a) + a / 2)
    # X (I - A/2)^-1 is the adjoint of (I + A/2)^-1 X^H
    return _lu_solve(lu, pivots, x.mH).mH.mul(2).sub_(x), lu, pivots


def _pull_x(a: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """G (I + A/2)^-1 (I - A/2), the move along -A."""
    if not lu.numel():
        return _forward(grad, -a)[0]
    return _lu_solve(lu, pivots, grad.mH, adjoint=True).mH.mul(2).sub_(grad)


def _pull_a(x: Tensor, a: Tensor, y: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """dY = (Y + X)/2 dA (I - A/2)^-1, so dA gets W (I + A/2)^-1 with W = ((Y + X)/2)^H G: half of W + W moved."""
    twice = product((x + y).mH, grad)
    return _pull_x(a, twice, lu, pivots).add_(twice).div_(4)


def _push_a(move: Move, x: Tensor, a: Tensor, da: Tensor) -> Tensor:
    """dY = (Y + X)/2 dA (I - A/2)^-1."""
    w = (x + move(x, a)) @ da
    return (w + move(w, a)) / 4


cayley_move = differentiable(plain, _forward, _pull_x, _pull_a, _push_a)
"""X (I - A/2)^-1 (I + A/2) for skew A: orthogonal if X is."""


def _terms(a: Tensor) -> int:
    """How many terms of sum (A/2)^k leave a remainder below rounding, from the norm of A; many if A is not small."""
    norm = norms(a).max().item() / 2 if a.numel() else 0.0
    if norm == 0:
        return 0
    if not norm < 0.5:  # also where it is NaN
        return 1000
    return max(1, math.ceil(math.log(torch.finfo(a.dtype).eps / 4) / math.log(norm)) - 1)


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
