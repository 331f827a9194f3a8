"""The singular value decomposition in the form that compositions take."""

from __future__ import annotations

import torch
from torch import Tensor


def columns(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, V) with x = U diag(s) V^H, s real and falling, taken in float64 and rounded to the dtype of x."""
    u, s, vh = torch.linalg.svd(x.to(torch.promote_types(x.dtype, torch.float64)), full_matrices=False)
    return u.to(x.dtype), s.to(x.dtype.to_real()), vh.mH.to(x.dtype)
