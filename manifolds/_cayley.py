"""X -> X (I - A/2)^-1 (I + A/2) for skew A: one factorization for the way there and back.

`plain` is the definition; the rest computes the same numbers, in closed form where A is real and at most 3 x 3, by a
series where it is small, by LU elsewhere. Which one is decided in `_forward`, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._linalg import LU_BATCH, eye_like, geometric_terms, on_accelerator, resolvent
from ._move import differentiable
from ._tiny import batch_last, in_order_of, is_batch_last, norms, product, turned

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
    if on_accelerator(a):
        return 2 * x @ resolvent(a) - x, none, none
    norm = float(norms(a).max().item()) / 2 if a.numel() else 0.0
    terms = geometric_terms(norm, a.dtype)
    if terms == 0:
        return x.clone(), none, none
    if terms <= (2 if n >= LU_BATCH else 12):  # X + X W with W = A + A^2/2 + A^3/4 + ...
        w = a
        for _ in range(terms - 1):
            w = product(a, w, a, 0.5)
        return product(x, w, x), none, none
    if not math.isfinite(norm):  # LU divides by an infinite pivot as if all were well
        x = x + (0 * a).sum((-2, -1), keepdim=True)
    lu, pivots = _factor(a)
    half = _solve(x, lu, pivots)
    return torch.lerp(x, half, 2.0, out=half), lu, pivots


def _pull_x(a: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """G (I + A/2)^-1 (I - A/2), the move along -A."""
    return torch.lerp(grad, _solve(grad, lu, pivots, adjoint=True), 2) if lu.numel() else _forward(grad, -a)[0]


def _pull_a(x: Tensor, a: Tensor, y: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """dY = (Y + X)/2 dA (I - A/2)^-1, so dA gets W (I + A/2)^-1 with W = ((Y + X)/2)^H G: half of W + W moved."""
    w = product(torch.lerp(x, y, 0.5).mH, grad)
    return _solve(w, lu, pivots, adjoint=True, out=w) if lu.numel() else torch.lerp(w, _forward(w, -a)[0], 0.5)


cayley_move = differentiable(plain, _forward, _pull_x, _pull_a)
"""X (I - A/2)^-1 (I + A/2) for skew A: orthogonal if X is."""


def cayley_step(x: Square, a: Square) -> Square:
    """`cayley_move` without derivatives, of which only the optimizers have no need."""
    return in_order_of(_forward(batch_last(x), batch_last(a))[0], x)


def _factor(a: Tensor) -> tuple[Tensor, Tensor]:
    """LU factors and pivots of I + A/2 = (I - A/2)^H, matrix by matrix from LU_BATCH on, column by column in memory."""
    m = torch.sub(eye_like(a), a, alpha=0.5).mH
    if m.dim() == 2 or m.shape[-1] < LU_BATCH:
        lu, pivots = torch.linalg.lu_factor(m)
        return lu, pivots
    pivots = torch.empty(a.shape[:-1], dtype=torch.int32, device=a.device)
    for one, p in zip(_each(m, 2), _each(pivots, 1), strict=True):
        torch.linalg.lu_factor(one, out=(one, p))
    return m, pivots


def _solve(b: Tensor, lu: Tensor, pivots: Tensor, adjoint: bool = False, out: Tensor | None = None) -> Tensor:
    """B (I - A/2)^-1, the adjoint of (I + A/2)^-1 B^H, with the factors of `_factor`; adjoint: B (I + A/2)^-1.

    out: memory for large matrices, which may be that of B.
    """
    if lu.dim() == 2 or lu.shape[-1] < LU_BATCH:
        return torch.linalg.lu_solve(lu, pivots, b.mH, adjoint=adjoint).mH.contiguous()  # type: ignore[no-any-return]
    y = b.new_empty(b.shape) if out is None else out
    for f, p, one, to in zip(*(_each(t, k) for t, k in ((lu, 2), (pivots, 1), (b, 2), (y, 2))), strict=True):
        torch.linalg.lu_solve(f, p, one.mH, adjoint=adjoint, out=to.mT)
    return y.conj_physical_() if y.is_complex() else y


def _each(t: Tensor, ndim: int) -> Iterable[Tensor]:
    """The matrices, or vectors, of a batch."""
    return t.flatten(0, -ndim - 1).unbind() if t.dim() > ndim else (t,)
