"""(I - A/2)^-1 for skew A, with its own derivative: by LU, by Cholesky, by products, as the device has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .iterations import resolvent_by_products
from .linalg import LU_BATCH, Square, eye_like, on_accelerator, solve_definite
from .precision import without_autocast
from .transforms import in_forward_mode, is_batched


def resolvent(a: Square) -> Square:
    """(I - A/2)^-1 for skew A. One factorization in all: dP = P dA P / 2, so the backward is two products."""
    return _inverse(a) if in_forward_mode() else _Resolvent.apply(a)  # type: ignore[no-untyped-call]


def resolvent_of_any(a: Square) -> Square:
    """`resolvent` without derivatives, where values are not looked at: of any length for which there are digits, else
    NaN. Of many tiny matrices by LU, which takes a seventh of the time of Cholesky: 0.6 ms for 200,000 of 8 x 8."""
    if is_for_products(a):
        return resolvent_by_products(a)
    n = a.shape[-1]
    return _inverse_of_tiny(a) if n <= 16 and a.numel() > n * n else _inverse_by_cholesky(a)


def is_for_products(a: Square) -> bool:
    """Whether some 25 products invert I - A/2 faster, on an accelerator, than a Cholesky factorization: of three of
    512 x 512 2.6 times; of one, of tiny ones and of a few larger ones they do not. Many larger ones no graph captures
    otherwise."""
    n = a.shape[-1]
    count = a.numel() // (n * n) if n else 0
    return n >= 32 and count > (1 if n <= 1024 else 8)


def _inverse(a: Tensor) -> Tensor:
    """(I - A/2)^-1 by LU, as torch derives it."""
    eye = eye_like(a)
    if a.is_cpu and a.shape[-1] >= LU_BATCH and is_batched(a):
        return _inverse_by_cholesky(a)
    if a.is_cpu and a.dim() > 2 and a.shape[-1] >= LU_BATCH:
        flat = [torch.linalg.inv(eye - m / 2) for m in a.reshape(-1, *a.shape[-2:])]
        return torch.stack(flat).reshape(a.shape)
    return torch.linalg.inv(eye - a / 2)  # type: ignore[no-any-return]


def _inverse_by_cholesky(a: Tensor) -> Tensor:
    """(I - A/2)^-1 = (I + A^H A/4)^-1 (I + A/2), then a step of third order: no LU. NaN where that is not enough."""
    eye = eye_like(a)
    factor = torch.linalg.cholesky_ex(eye + a.mH @ a / 4).L
    p = solve_definite(eye + a / 2, factor)
    error = eye - p + a @ p / 2
    square = error @ error  # what is left is of its size to the power 3/2, relative to P
    near = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True) < torch.finfo(a.dtype).eps ** (2 / 3)
    return torch.where(near, p + p @ (error + square), torch.nan)


def _inverse_of_tiny(a: Tensor) -> Tensor:
    """(I - A/2)^-1 by LU, which moves off the manifold by up to |A| eps / 4: NaN where one polish cannot mend it."""
    norm = torch.linalg.vector_norm(a, dim=(-2, -1), keepdim=True)
    inverse = torch.linalg.inv_ex(eye_like(a) - a / 2).inverse
    return torch.where(norm < 8 * torch.finfo(a.dtype).eps ** -0.5, inverse, torch.nan)


class _Resolvent(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return resolvent_of_any(a) if on_accelerator(a) else _inverse(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p.mH @ grad @ p.mH / 2  # type: ignore[no-any-return]

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor) -> tuple[Tensor, int]:
        return _Resolvent.apply(a.movedim(in_dims[0], 0)), 0  # type: ignore[no-untyped-call]
