"""X -> X (I - A/2)^-1 (I + A/2) for skew A: one factorization for the way there and back.

`plain` is the definition; the rest computes the same numbers, in closed form where A is real and at most 3 x 3, by a
series where it is short, by halves elsewhere, by LU where it is of a few rows or long. Which one is decided in
`_forward`, and in `cayley_step` for optimizers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from jaxtyping import Inexact
from torch import Tensor

from .halves import REACH, factors_by_halves, resolvent_by_halves, smallest, solve_by_halves
from .iterations import fused
from .linalg import (
    LU_BATCH,
    eye_like,
    geometric_terms,
    is_traced,
    may_look,
    may_overwrite,
    newton_schulz,
    on_accelerator,
)
from .mend import unit_columns
from .move import differentiable
from .resolvent import resolvent, resolvent_of_any
from .tiny import batch_last, in_order_of, largest_norm, norms, product, skew_squares

FAR = 256  # a norm from which on rounding in LU is more than anywhere else

HALVED = 384  # a size from which on half a product is worth more calls

Square = Inexact[Tensor, "*batch n n"]
Size = float | Tensor  # one for all, or one for each matrix, shaped to multiply it


def plain(x: Square, a: Square) -> Square:
    """2 X (I - A/2)^-1 - X."""
    y = 2 * x @ resolvent(a) - x
    return y if a.shape[-1] < LU_BATCH else unit_columns(y)


def _forward(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The move, and what inverts I - A/2: (I - A/2)^-1 or its halves, and no pivots, or LU factors and pivots of
    I + A/2 = (I - A/2)^H, or nothing, where it was not made."""
    none = a.new_empty(0)
    if _is_tiny(a):
        return _tiny(x, a), none, none
    if on_accelerator(a):
        p = resolvent_of_any(a)
        return newton_schulz(_by_inverse(x, p)), p, none
    norm = largest_norm(a)
    if (terms := _few_terms(a, norm)) is not None:
        return _series(x, a, 1.0, terms), none, none
    if norm <= REACH and _goes_by_halves(a):
        if _stays_halved(a):
            p = factors_by_halves(a)
            y = solve_by_halves(x, p)
            y = torch.lerp(x, y, 2.0, out=y)
        else:
            p = resolvent_by_halves(a)
            y = _by_inverse(x, p)
        return (unit_columns(y, out=y) if a.shape[-1] >= LU_BATCH else y), p, none
    if not math.isfinite(norm):  # LU divides by an infinite pivot as if all were well
        x = x + (0 * a).sum((-2, -1), keepdim=True)
    lu, pivots = _factor(a)
    half = _solve(x, lu, pivots)
    y = torch.lerp(x, half, 2.0, out=half)
    if a.shape[-1] >= LU_BATCH:
        y = unit_columns(y, out=y)
    return _polished(x, a, y, norm) if norm > FAR else y, lu, pivots


def _by_inverse(x: Tensor, p: Tensor) -> Tensor:
    """2 X P - X for P = (I - A/2)^-1."""
    return fused(x, x, p, -1, 2)


def _polished(x: Tensor, a: Tensor, y: Tensor, norm: float) -> Tensor:
    """Y, the move of X along A of this norm by LU, which is off by up to norm eps / 6."""
    eps = torch.finfo(a.dtype).eps
    if eps > 1e-10 and norm * eps > 0.1:
        wide = torch.promote_types(a.dtype, torch.float64)
        return _forward(x.to(wide), a.to(wide))[0].to(y.dtype)
    error = norm * eps / 6
    while error > 4 * eps and error < 0.1:
        y, error = newton_schulz(y), error**2
    return y if error <= 4 * eps else y * torch.nan


def _tiny(x: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
    """X + 4 (X + X A/2) A / (4 + t^2), for A^3 = -t^2 A with t^2 = |A|^2/2. out: memory, which may be that of A."""
    scale = skew_squares(a, 0.5).add_(4)
    scale.lerp_(scale, 0.0)  # Inf - Inf: where the square overflows the move is NaN, and not of no length
    middle = product(x, a, x, 0.5)
    return product(middle, torch.div(a, scale[..., None, None], out=out), x, 4)


def _is_tiny(a: Tensor) -> bool:
    return a.shape[-1] <= 3 and not a.is_complex()


def _few_terms(a: Tensor, norm: float, alone: bool = False) -> int | None:
    """How many terms of the series matrices like A, of this norm, need; None where their inverse is less work. alone:
    whether there is no way back, which is as many products and one, where two do with the inverse."""
    # singular values of a real skew matrix come in pairs, so the largest is no more than |A| / sqrt(2)
    terms = geometric_terms(norm / (2 if a.is_complex() else 2 * math.sqrt(2)), a.dtype)
    n = a.shape[-1]
    if not _goes_by_halves(a):
        return terms if terms <= (2 if n >= LU_BATCH else 12) else None
    few = (7 if alone else 4) if n < 256 else (3 if alone else 2)
    return terms if terms <= few else None


def _goes_by_halves(a: Tensor) -> bool:
    """Whether A is so large that its inverse, and a product with it on the way back, are less than LU and solving."""
    return a.shape[-1] > smallest()


def _stays_halved(a: Tensor) -> bool:
    """Whether A is so large that the inverse by halves is not put together: its size alone says what is kept."""
    return a.shape[-1] >= HALVED and not on_accelerator(a)


def _longest(c: Tensor, size: Size) -> float:
    """A bound of the largest |size C|, which is sharp."""
    lost = c.shape[-1] * _lost(c.dtype)
    if isinstance(size, Tensor):
        return float(norms(c, keepdim=True).add_(lost).mul_(size).abs_().amax().item())
    return (largest_norm(c) + lost) * abs(size)


@functools.cache
def _lost(dtype: torch.dtype) -> float:
    """How large an entry may be that is lost in a norm, for its square underflows."""
    return math.sqrt(torch.finfo(dtype).tiny)


def _series(x: Tensor, c: Tensor, size: Size, terms: int) -> Tensor:
    """X + X (A + A^2/2 + A^3/4 + ...) for A = size C, which is never made: a pass over memory less."""
    if terms == 0:
        return x.clone()
    first = y = product(x, c)
    for _ in range(terms - 1):
        y = _plus(first, product(y, c), size, 0.5)
    return _plus(x, y, size)


def _plus(x: Tensor, y: Tensor, size: Size, by: float = 1.0) -> Tensor:
    """X + by size Y, in the memory of Y."""
    if isinstance(size, Tensor):
        return torch.addcmul(x, y, size, value=by, out=y)
    return torch.add(x, y, alpha=by * size, out=y)


def _pull_x(a: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """G (I + A/2)^-1 (I - A/2), the move along -A."""
    if not lu.numel():
        return _forward(grad, -a)[0]
    if pivots.numel():
        return torch.lerp(grad, _solve(grad, lu, pivots, adjoint=True), 2)
    if _stays_halved(a):
        return torch.lerp(grad, solve_by_halves(grad, lu, adjoint=True), 2)
    return fused(grad, grad, lu.mH, -1, 2)


def _pull_a(x: Tensor, a: Tensor, y: Tensor, grad: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """dY = (Y + X)/2 dA (I - A/2)^-1, so dA gets W (I + A/2)^-1 with W = ((Y + X)/2)^H G: half of W + W moved."""
    half = torch.lerp(x, y, 0.5)
    w = product(half.mH, grad)
    if not lu.numel():
        return torch.lerp(w, _forward(w, -a)[0], 0.5)
    if pivots.numel():
        return _solve(w, lu, pivots, adjoint=True, out=w)
    if _stays_halved(a):
        return solve_by_halves(w, lu, adjoint=True)
    if w.shape[-1] < LU_BATCH:
        return product(w, lu.mH)
    return torch.matmul(w, lu.mH, out=half)  # fresh memory costs a tenth of the product


cayley_move = differentiable(plain, _forward, _pull_x, _pull_a)
"""X (I - A/2)^-1 (I + A/2) for skew A: orthogonal if X is."""


def cayley_step(x: Square, c: Square, size: Size) -> Square | None:
    """`cayley_move` along size C, past the cost of what records derivatives; None in a graph. On accelerators it is not
    polished, which optimizers do there."""
    if not may_look(x):
        return None if is_traced() or _is_tiny(c) else unit_columns(_by_inverse(x, resolvent_of_any(c * size)))
    kept, x, c = x, batch_last(x), batch_last(c)
    if _is_tiny(c):
        if c.shape == x.shape and may_overwrite(c):
            a = torch.mul(c, size, out=torch.empty_like(x))  # in the tiles of X
            y = _tiny(x, a, out=a)
        else:
            y = _tiny(x, c * size)
    elif (terms := _few_terms(c, _longest(c, size), alone=True)) is not None:
        y = _series(x, c, size, terms)
    else:
        y = _forward(x, c * size)[0]
        y = y if c.shape[-1] >= LU_BATCH else unit_columns(y)
    return y if x is kept else in_order_of(y, kept)


def _factor(a: Tensor) -> tuple[Tensor, Tensor]:
    """LU factors and pivots of I + A/2 = (I - A/2)^H, matrix by matrix from LU_BATCH on, column by column in memory.

    A pivot of 0, where rounding has lost I, makes what is solved for NaN or infinite.
    """
    m = torch.sub(eye_like(a), a, alpha=0.5).contiguous().mH
    if m.dim() == 2 or m.shape[-1] < LU_BATCH:
        lu, pivots, _ = torch.linalg.lu_factor_ex(m)
        return lu, pivots
    pivots = torch.empty(a.shape[:-1], dtype=torch.int32, device=a.device)
    info = torch.empty((), dtype=torch.int32, device=a.device)
    for one, p in zip(_each(m, 2), _each(pivots, 1), strict=True):
        torch.linalg.lu_factor_ex(one, out=(one, p, info))
    return m, pivots


def _solve(b: Tensor, lu: Tensor, pivots: Tensor, adjoint: bool = False, out: Tensor | None = None) -> Tensor:
    """B (I - A/2)^-1, the adjoint of (I + A/2)^-1 B^H, with the factors of `_factor`; adjoint: B (I + A/2)^-1.

    out: memory for large matrices, which may be that of B.
    """
    if lu.dim() == 2 or lu.shape[-1] < LU_BATCH:
        return torch.linalg.lu_solve(lu, pivots, b.mH, adjoint=adjoint).mH.contiguous()  # type: ignore[no-any-return]
    y = b.new_empty(b.shape) if out is None else out
    for f, p, one, to in zip(
        *(_each(t, k) for t, k in ((lu, 2), (pivots, 1), (b.contiguous(), 2), (y, 2))), strict=True
    ):
        torch.linalg.lu_solve(f, p, one.mH, adjoint=adjoint, out=to.mT)
    return y.conj_physical_() if y.is_complex() else y


def _each(t: Tensor, ndim: int) -> Iterable[Tensor]:
    """The matrices, or vectors, of a batch: its own memory, to be written to."""
    return t.view(-1, *t.shape[-ndim:]).unbind() if t.dim() > ndim else (t,)
