"""What compositions need of a tensor to take it apart: that it is finite, and its singular values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def checked(x: Tensor) -> Tensor:
    """x in float64. ValueError where it is not finite, which linear algebra may not survive."""
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(
            f"a tensor of shape {tuple(x.shape)} is composed of no points, as {bad} of its entries are NaN or "
            f"infinite. Give finite ones."
        )
    return x.to(torch.promote_types(x.dtype, torch.float64))


def columns(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, V) with x = U diag(s) V^H, s real and falling, taken in float64 and rounded to the dtype of x. ValueError
    where x is not finite."""
    u, s, vh = torch.linalg.svd(checked(x), full_matrices=False)
    return u.to(x.dtype), s.to(x.dtype.to_real()), vh.mH.to(x.dtype)


def each(function: Callable[[Tensor], Tensor], x: Tensor, like: Tensor) -> Tensor:
    """function of every matrix of x, one by one; like, with its shape, where there is none."""
    flat = x.reshape(-1, *x.shape[-2:])
    return torch.stack([function(matrix) for matrix in flat]).reshape(like.shape) if len(flat) else like
