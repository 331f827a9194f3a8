"""Scaling of positive matrices to row and column sums of one, and the linear system of its derivative.

Y = diag(a) K diag(b) is unique. Its logarithm moves by dL - (p 1^T + 1 q^T) where L = log K does, with p and q such
that rows and columns of Y o (dL - p 1^T - 1 q^T) sum to zero.
Source: Sinkhorn & Knopp, Concerning nonnegative matrices and doubly stochastic matrices (1967); Brauer, Clason, Lorenz
& Wirth, A Sinkhorn-Newton method for entropic optimal transport (2017).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .iterations import ORDER
from .linalg import eye_like, may_look, solve_definite
from .transforms import is_recorded, whole

Square = Float[Tensor, "*batch n n"]
Column = Float[Tensor, "*batch n 1"]

ROUNDS = 200  # where each is looked at
BLIND = 24
FARTHEST = 2.0  # of one step of Newton, in logarithms


def scaled(k: Square) -> Square:
    """diag(a) K diag(b) with rows and columns that sum to one, for positive K; derivatives up to ORDER in every mode.

    Sinkhorn's rounds, each followed by a Newton step, of bounded length, where that is nearer: quadratic near. What is
    differentiated are ORDER steps with a constant matrix from the constant solution, each right to one order more.
    """
    with torch.no_grad():
        y = _solved(k.detach())
    if not is_recorded(k):
        return y
    factor = factored(y)
    y = y * (k / k.detach())
    for _ in range(ORDER):
        p, q = solved(y.detach(), factor, y.sum(-1, keepdim=True) - 1, y.sum(-2).unsqueeze(-1) - 1)
        step = p + q.mT
        # none in value, where it is rounding, which near a permutation the system makes as large as anything
        y = y * torch.exp(step.detach() - step)
    return y


def factored(y: Square) -> Square:
    """The triangular factor of I - Y^T Y without its last row and column.

    It is a Laplacian, and its diagonal the sum of what is beside it: of 1 - |y_j|^2 near a permutation nothing would be
    left. A little more of it keeps it definite where rounding would not; `solved` is to be repeated on what is left.
    """
    beside = y.mT @ y * (1 - eye_like(y))
    more = 1 + 4 * y.shape[-1] * torch.finfo(y.dtype).eps
    laplacian = (beside.sum(-1) * more).diag_embed() - beside
    factor, info = torch.linalg.cholesky_ex(laplacian[..., :-1, :-1])
    return torch.where((info == 0)[..., None, None], factor, torch.nan)  # an error would be that of the whole batch


def solved(y: Square, factor: Square, rows: Column, columns: Column) -> tuple[Column, Column]:
    """(p, q) with p + Y q = rows and Y^T p + q = columns, whose sums are equal; of the many one with q_n = 0."""
    right = columns - y.mT @ rows
    q = torch.cat([solve_definite(right[..., :-1, :], factor), torch.zeros_like(right[..., -1:, :])], -2)
    return rows - y @ q, q


def _solved(k: Square) -> Square:
    y, looks, eps = k, may_look(k), torch.finfo(k.dtype).eps
    for _ in range(ROUNDS if looks else BLIND):
        y = y / y.sum(-1, keepdim=True)
        y = y / y.sum(-2, keepdim=True)
        rows = y.sum(-1, keepdim=True) - 1
        off = rows.abs().amax((-2, -1), keepdim=True)
        if looks and not bool(whole(off > 4 * eps).any()):  # where NaN, there is nothing to come
            break
        p, q = solved(y, factored(y), rows, torch.zeros_like(rows))
        step = p + q.mT
        longest = step.abs().amax((-2, -1), keepdim=True)  # blocks nearly apart ask for dozens
        z = y * torch.exp(-step * (FARTHEST / longest).clamp_max(1))
        z = z / z.sum(-2, keepdim=True)
        y = torch.where((z.sum(-1, keepdim=True) - 1).abs().amax((-2, -1), keepdim=True) < off, z, y)
    return y
