"""What rounding leaves of X^H X = I is mended: columns by O(n p), the rest by Newton-Schulz, and by more digits where
it is much.

In exact arithmetic nothing here changes anything, so derivatives are those of what was computed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .linalg import _InverseSqrt, inverse_sqrt, is_traced, may_look, may_overwrite, newton_schulz, orthogonality_error
from .tiny import largest_norm
from .transforms import in_forward_mode, is_recorded, is_transformed

Points = Inexact[Tensor, "*batch n p"]

ROWS = 64  # of so many at a time the squares stay in the cache

MUCH = 8.0  # from this condition on; below, an error of it is no more than that of other rounding


def unit_columns(y: Points, out: Tensor | None = None) -> Points:
    """Y with columns of norm 1, where they are that but for rounding; other columns are left, to rounding.

    The pivots of a factorization of I + A gather some sqrt(n) eps, which make columns of what it solves for longer or
    shorter, but leave them at right angles. out: memory, which may be that of Y.
    """
    kept = y.detach()
    parts = kept.split(ROWS, -2) if may_look(y) else (kept,)
    squares = sum(
        (_squares(part).sum(-2, keepdim=True) for part in parts[1:]), _squares(parts[0]).sum(-2, keepdim=True)
    )
    reach = 8 * math.sqrt(y.shape[-2]) * torch.finfo(y.dtype).eps
    scale = torch.lerp(squares.new_ones(()), squares, -0.5).clamp(1 - reach, 1 + reach)
    return y * scale if out is None else torch.mul(y, scale, out=out)


def _squares(y: Points) -> Float[Tensor, "*batch n p"]:
    return (y.conj() * y).real if y.is_complex() else y * y


def orthonormal(y: Points, condition: float | None) -> Points:
    """Tall Y, orthonormal up to `condition` eps, to rounding; NaN where it is too far from that.

    condition: None where it is not known, as values may not be looked at: then Y is polished once, but for transforms.
    """
    if (not is_traced() and is_transformed(y)) if condition is None else condition <= MUCH:
        return y  # in a transform the value has to be that of its derivatives, also off the manifold
    z = newton_schulz(y.detach())
    if condition is not None and not condition <= polish_reach(y.dtype):
        for _ in range(5):  # from an error of 1/2 to rounding
            z = newton_schulz(z)
        near = orthogonality_error(z) <= 1e-10
        z = torch.where(near[..., None, None], z, torch.nan)
    return z if may_overwrite(y) else y + (z - y.detach())  # with the derivatives of Y


def wider(condition: float | None, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype in which to compute what `orthonormal` could not mend; None where this one will do, or has to."""
    if condition is None or condition <= polish_reach(dtype) or torch.finfo(dtype).eps < 1e-10:
        return None
    return torch.promote_types(dtype, torch.float64)


def inverse_sqrt_and_condition(s: Inexact[Tensor, "*batch p p"]) -> tuple[Inexact[Tensor, "*batch p p"], float | None]:
    """S^(-1/2), and the larger of |S| and |S^-1|; None where values may not be looked at."""
    if in_forward_mode():
        return inverse_sqrt(s), None
    # what no graph records needs no Function, whose apply reads the signature of its forward every time
    forward = _InverseSqrt.apply if is_recorded(s) or is_traced() else _InverseSqrt.forward
    r, values, _ = forward(s)
    if not may_look(s) or is_transformed(s):
        return r, None
    if not values.numel():
        return r, 1.0
    least = values.min().item()
    return r, max(values.max().item(), 1 / least) if least > 0 else math.inf  # S is positive, but for rounding


def largest_square(s: Inexact[Tensor, "*batch p p"]) -> float | None:
    """The largest entry of Gram matrices, which is on a diagonal; None where values may not be looked at."""
    if not may_look(s) or is_transformed(s):
        return None
    s = s.detach()
    return float((s.real if s.is_complex() else s).max().item())


def length_of(v: Points) -> float | None:
    """The largest |V|; None where values may not be looked at."""
    return largest_norm(v.detach()) if may_look(v) and not is_transformed(v) else None


def polish_reach(dtype: torch.dtype) -> float:
    """The condition whose error one polish, which squares it, takes to rounding."""
    return 1 / math.sqrt(torch.finfo(dtype).eps)
