"""A bucket of points of which every process has a slice: what it decides by, all of them have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...summing import Parts
from .bucket import Bucket
from .limits import flat, is_fit
from .rows import Leaf
from .sliced import Sliced


class SlicedBucket(Bucket):
    """A `Bucket` whose factor is `Sliced`. `look` says whether `off` is to look at the points, on all processes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert isinstance(self.factor, Sliced)
        self.parts, self.look = self.factor.parts, True
        self.share = self.parts.count**-0.5

    def is_changed(self) -> bool:
        """Whether the slice here is not what was written last; on CPU."""
        return self._watched and self.x.sum().item() != self._written

    def off(self) -> Leaf | None:
        """As there; a collective, if all processes are told to look."""
        if not self.look or not self._watched:
            return None
        self._written = None  # where somebody else's slice has changed
        return super().off()

    def read_gradients(self, cut: Sequence[Tensor]) -> None:
        """As there; on an accelerator a point moves if all slices of its gradient are finite."""
        super().read_gradients(cut)
        if self.ok is not None:
            self.ok = ~self.parts.anywhere(~(self.ok & is_fit(self.g, self.share)))
            self.g = self._keep(self.g, 0)

    def keep_unseen(self) -> None:
        """As there, where no process sees a gradient."""
        seen = self.parts.anywhere((flat(self.g) != 0).any(1))
        self.seen, self.ok = (seen, seen) if self.ok is None else (seen | ~self.ok, seen & self.ok)
        self._drift = math.inf
        self._ready.clear()


def agree_on_looking(buckets: Sequence[Bucket]) -> None:
    """Let all processes look at the points of a bucket where one has a slice that was changed: an all-reduce of a
    truth value for each sliced bucket. None on accelerators, where nothing is looked at."""
    sliced: dict[Parts, list[SlicedBucket]] = {}
    for bucket in buckets:
        if isinstance(bucket, SlicedBucket) and bucket.looks:
            sliced.setdefault(bucket.parts, []).append(bucket)
    for parts, some in sliced.items():
        changed = parts.anywhere(torch.tensor([bucket.is_changed() for bucket in some]))
        for bucket, look in zip(some, changed.tolist(), strict=True):
            bucket.look = look
