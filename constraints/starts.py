"""The named starts: random, the identity, rotations in planes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from manifolds import Euclidean, Manifold, tolerance
from manifolds.engine import engine

from .finite import check_finite

Start = Literal["haar", "identity", "torus"]


def named_start(manifold: Manifold, x: Tensor, start: Start, who: str) -> Tensor:
    """The point of this name for a tensor like x, in its dtype; Euclidean blocks keep theirs. ValueError if none."""
    parts = []
    for factor, points in engine(manifold).split(x):
        if isinstance(factor, Euclidean):
            check_finite(points, who, f", for init={start!r} leaves what is Euclidean as it is")
            parts.append(points)
            continue
        if start == "haar":
            parts.append(factor.random(*points.shape, dtype=points.dtype, device=points.device))
            continue
        if factor.ndim != 2 or (start == "torus" and x.is_complex()):
            kind = "real matrices" if start == "torus" else "matrices"
            raise ValueError(
                f"init={start!r} of {who} is for {kind}; {factor} has points of {factor.ndim} axes and the tensor "
                f"dtype {x.dtype}. Use init='haar' or a tensor."
            )
        parts.append(_identity(points) if start == "identity" else _torus(points))
        if not bool((factor.residual(parts[-1]) <= tolerance(x.dtype)).all()):
            raise ValueError(f"init={start!r} of {who} is not a point of {factor}. Use init='haar' or a tensor.")
    return engine(manifold).join(parts, x.shape).clone()


def _identity(x: Tensor) -> Tensor:
    return torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device).expand(x.shape)


def _torus(x: Tensor) -> Tensor:
    """The first columns (or rows) of diag(R(t_1), R(t_2), ...), t_i uniform, with a last 1 if the size is odd."""
    n, p = max(x.shape[-2:]), min(x.shape[-2:])
    planes = min((p + 1) // 2, n // 2)
    angles = (2 * torch.rand(*x.shape[:-2], planes, dtype=x.dtype, device=x.device) - 1) * math.pi
    tall = torch.eye(n, p, dtype=x.dtype, device=x.device).expand(*x.shape[:-2], n, p).clone()
    even = 2 * torch.arange(planes, device=x.device)
    odd = even + 1
    tall[..., even, even] = angles.cos()
    tall[..., odd, even] = angles.sin()
    inside = odd < p  # an odd p cuts the last plane in two
    tall[..., even[inside], odd[inside]] = -angles.sin()[..., inside]
    tall[..., odd[inside], odd[inside]] = angles.cos()[..., inside]
    return tall if x.shape[-2] >= x.shape[-1] else tall.mT
