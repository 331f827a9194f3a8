"""Arithmetic of numbers that belong to a problem: Python floats for one problem, tensors (B, 1) for a batch.

One problem is the common case, and small; for it a float costs a tenth of a tensor of one element. Solvers are written
once, for both. Nothing raises: what has no value is NaN or infinite, as in torch.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

Number = Any
"""float, or Float[Tensor, "B 1"]."""
Truth = Any
"""bool, or Bool[Tensor, "B 1"]."""


@functools.cache
def eps_of(dtype: torch.dtype) -> float:
    """That of torch.finfo, of which asking takes as long as a call on a tensor."""
    return torch.finfo(dtype).eps


# Asking whether something is a tensor takes four times as long as whether it is True, or a float: first these.


def where(mask: Truth, a: Any, b: Any) -> Any:
    """a where the mask holds, else b; numbers or rows."""
    if mask is True:
        return a
    if mask is False:
        return b
    return torch.where(mask, a, b) if isinstance(mask, Tensor) else (a if mask else b)


def pick(mask: Truth, a: Any, b: Any) -> Any:
    """`where`, without a copy where the mask holds everywhere."""
    if mask is True or all_(mask):
        return a
    return where(mask, a, b)


def any_(mask: Truth) -> bool:
    """Whether the mask holds for a problem."""
    if mask is True or mask is False:
        return mask
    return bool(mask.any()) if isinstance(mask, Tensor) else bool(mask)


def all_(mask: Truth) -> bool:
    """Whether the mask holds for every problem."""
    if mask is True or mask is False:
        return mask
    return bool(mask.all()) if isinstance(mask, Tensor) else bool(mask)


def no(mask: Truth) -> Truth:
    """Where the mask does not hold."""
    if mask is True or mask is False:
        return not mask
    return ~mask if isinstance(mask, Tensor) else not mask


def is_finite(a: Number) -> Truth:
    """Whether a is neither NaN nor infinite."""
    if isinstance(a, float):
        return math.isfinite(a)
    return torch.isfinite(a) if isinstance(a, Tensor) else math.isfinite(a)


def over(a: Number, b: Number) -> Number:
    """a / b; NaN or infinite for b = 0."""
    if (not isinstance(b, float) or not isinstance(a, float)) and (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a / b
    return a / b if b else (math.nan if a == 0 or a != a else math.copysign(math.inf, a))


def sqrt(a: Number) -> Number:
    """The square root; NaN for a < 0."""
    if not isinstance(a, float) and isinstance(a, Tensor):
        return a.sqrt()
    return math.sqrt(a) if a >= 0 else math.nan


def larger(a: Number, b: Number) -> Number:
    """max(a, b); b where a is NaN, of which nothing is larger."""
    return where(a > b, a, b)


def smaller(a: Number, b: Number) -> Number:
    """min(a, b); b where a is NaN."""
    return where(a < b, a, b)


def full(like: Number, value: float) -> Number:
    """The same number for every problem."""
    return value if isinstance(like, float) or not isinstance(like, Tensor) else torch.full_like(like, value)


def plus(v: Tensor, a: Number, d: Tensor) -> Tensor:
    """v + a d for rows v and d."""
    if isinstance(a, float) or not isinstance(a, Tensor):
        return torch.add(v, d, alpha=a)
    return torch.addcmul(v, a, d)
