"""The phase of a determinant, which itself, a product of hundreds of pivots, may under- or overflow."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from .linalg import LU_BATCH
from .transforms import is_batched

Square = Inexact[Tensor, "*batch n n"]


def determinant_phase(x: Square) -> Inexact[Tensor, "*batch"]:
    """det X / |det X|, by LU; the product of hundreds of pivots itself under- or overflows. 0 where X is singular.

    Raises ValueError for large complex matrices in vmap.
    """
    if not x.is_cpu or x.shape[-1] < LU_BATCH:
        return torch.linalg.slogdet(x).sign  # type: ignore[no-any-return]
    if is_batched(x):
        return _sign(x)
    return _one_by_one(x)


def unit_determinant(y: Square) -> Square:
    """Y / det(Y)^(1/n); a real path on O(n) keeps its determinant."""
    if not y.is_complex():
        return y
    phase = determinant_phase(y).angle() / y.shape[-1]
    return y * torch.polar(torch.ones_like(phase), -phase)[..., None, None]


def _one_by_one(x: Tensor) -> Tensor:
    if x.dim() == 2 or not x.numel():
        return torch.linalg.slogdet(x).sign  # type: ignore[no-any-return]
    return torch.stack([torch.linalg.slogdet(m).sign for m in x.flatten(0, -3)]).reshape(x.shape[:-2])


def _sign(x: Tensor) -> Tensor:
    """Of real matrices, and so without a derivative."""
    if x.is_complex():
        raise ValueError(
            f"the phase of a determinant is taken matrix by matrix from {LU_BATCH} x {LU_BATCH} on, which vmap does "
            f"not; got complex matrices of shape {tuple(x.shape[-2:])} in vmap. Pass them as one batch, without vmap."
        )
    return _Sign.apply(x.detach())  # type: ignore[no-any-return, no-untyped-call]


class _Sign(torch.autograd.Function):
    """That of real matrices, which has no derivative; vmap would take LU of its batch at once."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _one_by_one(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return _Sign.apply(x.movedim(in_dims[0], 0)), 0  # type: ignore[no-untyped-call]
