"""A step, and the momentum carried along it."""

from __future__ import annotations

import math

from torch import Tensor

from .bucket import Bucket, Points
from .limits import too_long


def travel(bucket: Bucket, c: Points, size: float | Tensor, longest: float | None = None) -> tuple[Points, Points]:
    """(y, what is kept of c after the step to y), with y = bucket.advance(c, size, longest). May overwrite c.

    In one pass where the engine has one. Raises torch.linalg.LinAlgError as `Bucket.advance` does.
    """
    engine, x = bucket.engine, bucket.x
    if not engine.travels or bucket.moves is False or (not isinstance(size, Tensor) and size == 0):
        y = bucket.advance(c, size, longest)
        return y, engine.store(x, y, c)
    if isinstance(size, Tensor) and size.dim():
        size = size.item() if bucket.looks and size.numel() == 1 else bucket.per_point(size)
    if not isinstance(size, Tensor) and not math.isfinite(size):
        raise too_long()
    y, stored = engine.travel(x, c, size)
    return bucket.settle(y), stored
