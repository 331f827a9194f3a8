"""A value has to be finite."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(x: Tensor, who: str, or_else: str = "") -> None:
    """ValueError where x has NaN or infinite entries; or_else is what there is to do besides giving finite ones."""
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).nonzero()
        first = f", the first at index {tuple(bad[0].tolist())}" if x.numel() > 1 else ""
        raise ValueError(
            f"{who} has NaN or infinite entries, {len(bad)} of {x.numel()} in shape {tuple(x.shape)}{first}. "
            f"Give it finite values{or_else}."
        )
