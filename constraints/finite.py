"""A value has to be finite."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(x: Tensor, who: str, or_else: str = "") -> None:
    """ValueError where x has NaN or infinite entries; or_else is what there is to do besides giving finite ones."""
    if not bool(torch.isfinite(x).all()):
        count = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{who} has NaN or infinite entries, {count} of {x.numel()} in shape {tuple(x.shape)}. "
            f"Give it finite values{or_else}."
        )
