"""The bounds of the page on what is promised, so that they are written once."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from manifolds import Manifold, Stiefel

PAGE = Path(__file__).parent.parent / "docs" / "promises.md"
PROMISED = {name: float(eps) for name, eps in re.findall(r"^\| ([a-z][^|]*?) \| ([\d.]+) \|", PAGE.read_text(), re.M)}


def off(x: Tensor, manifold: Manifold | None = None) -> float:
    """The residual in eps of the dtype of x, measured in more digits where there are some."""
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float64))
    return float((manifold or Stiefel()).residual(exact).max()) / torch.finfo(x.dtype).eps
