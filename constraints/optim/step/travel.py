"""A step, and the momentum carried along it."""

from __future__ import annotations

import torch
from torch import Tensor

from .bucket import Bucket, Points


def travel(bucket: Bucket, c: Points, size: float | Tensor, longest: float | None = None) -> tuple[Points, Points]:
    """(y, what is kept of c after the step to y), with y = bucket.advance(c, size, longest). May overwrite c.

    In one pass where the engine has one. Raises torch.linalg.LinAlgError as `Bucket.advance` does.
    """
    engine, x = bucket.engine, bucket.x
    if isinstance(size, Tensor) and bucket.looks and size.numel() == 1:
        size = size.item()
    at_once = engine.travels and bucket.moves is not False
    if at_once and not isinstance(size, Tensor):
        at_once = 0 < abs(size) <= torch.finfo(bucket.dtype).max
    if not at_once:
        y = bucket.advance(c, size, longest)
        return y, engine.store(x, y, c)
    if isinstance(size, Tensor) and size.dim():
        size = bucket.per_point(size)
    y, stored = engine.travel(x, c, size)
    return bucket.settle(y), stored
