"""What the base of a trivialization was when it was last found on its manifold, so that a write to it is noticed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold, tolerance
from manifolds.engine import engine
from manifolds.engine import settled as engine_settled
from manifolds.kernels.precision import exact_products
from manifolds.linear import LinearSpace

from .values import at_least_float32, is_near, master_dtype, may_look


class Seen:
    """A base that is a point.

    Whoever walks over `parameters()` writes to the base too: target networks, initializers, averages. On CPU a write is
    seen by the version or by the norm, which no average of different points keeps where points have one norm; on
    accelerators by the version only, for looking would stall them.
    """

    def __init__(self) -> None:
        self._place: tuple[int, int, int] | None = None
        self._norm: float | None = None
        self._sums: list[Tensor] | None = None

    def take(self, manifold: Manifold, base: Tensor, lasts: bool = True) -> None:
        """The base is a point as it is. lasts: whether this is its memory, and not gathered for the moment."""
        self._place = _place(base) if lasts else None
        self._norm = _norm(base) if may_look(base) else None
        self._sums = _sums(manifold, base)

    def knows(self, base: Tensor) -> bool:
        """Whether nothing was written to the base since."""
        if _place(base) != self._place:
            return False
        return not may_look(base) or _norm(base) == self._norm

    def is_same_point(self, manifold: Manifold, base: Tensor) -> bool:
        """Whether the base is the point that it was but for rounding, as one that was averaged with itself."""
        if self._sums is None:
            return True
        slack = tolerance(torch.float32) * base.numel() ** 0.5  # entries that are off by rounding, in any direction
        pairs = zip(_sums(manifold, base), self._sums, strict=True)
        return all(abs(complex(x) - complex(y)) <= slack for x, y in pairs)

    def __getstate__(self) -> dict[str, Any]:
        return {"_place": None, "_norm": None, "_sums": self._sums}  # a copy lies elsewhere


def settled(manifold: Manifold, base: Tensor, seen: Seen | None) -> Tensor | None:
    """The point that a base is to rounding; None if it is off the manifold, or is an average of different points, told
    by the point that was seen before, if any."""
    with exact_products(base.device.type):
        if base.dtype != master_dtype(base.dtype):  # gathered for a pass in half precision
            return base if is_near(manifold, at_least_float32(base), base.dtype) else None
        if bool(manifold.contains(base).all()):
            return base
        if not is_near(manifold, base, base.dtype):
            return None
        if seen is None:
            return base
        point = engine_settled(manifold, base.to(torch.promote_types(base.dtype, torch.float64))).to(base)
    return point if seen.is_same_point(manifold, point) else None


def _place(base: Tensor) -> tuple[int, int, int]:
    # the storage, for `fully_shard` frees its memory after a pass, and takes other memory for the next
    version = 0 if base.is_inference() else base._version
    return int(base.untyped_storage()._cdata), int(base.storage_offset()), version


def _norm(base: Tensor) -> float:
    return float(torch.linalg.vector_norm(base))


def _sums(manifold: Manifold, base: Tensor) -> list[Tensor]:
    """The sum of all points of each kind. Vectors of a flat factor are points whatever they are averaged with."""
    wide = base.dtype if base.device.type == "mps" else torch.promote_types(base.dtype, torch.float64)
    return [x.sum(dtype=wide) for factor, x in engine(manifold).split(base) if not isinstance(factor, LinearSpace)]
