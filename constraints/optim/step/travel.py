"""A step, and the momentum carried along it."""

from __future__ import annotations

from torch import Tensor

from .bucket import Bucket, Points


def travel(bucket: Bucket, c: Points, size: float | Tensor, longest: float | None = None) -> tuple[Points, Points]:
    """(y, what is kept of c after the step to y), with y = bucket.advance(c, size, longest). May overwrite c.

    In one pass where the engine has one. Raises torch.linalg.LinAlgError as `Bucket.advance` does.
    """
    engine, x = bucket.engine, bucket.x
    by = bucket.sized(size) if engine.travels else None
    if by is None:
        y = bucket.advance(c, size, longest)
        return y, engine.store(x, y, c)
    y, stored = engine.travel(x, c, by)
    return bucket.settle(y), stored
