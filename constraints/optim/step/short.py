"""Which map moves the points on an accelerator: by products alone while steps are short.

Whether the next step is short cannot be asked without waiting, so the defect of the step before the last decides, with
a margin. Should a step be too long for its map all the same, it is not taken: the point stays, counted as skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifolds import Grassmann, Manifold, Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.engine import Engine
from manifolds.kernels.short import PULLED, TURNED, pulled, pulled_defect, turned, turned_defect
from manifolds.retractions import cayley, polar

from .late import Late

FEW = 32**2
"""Matrices of fewer numbers cost their calls, and no factorization to speak of; and their lengths change by chance."""


class ShortSteps:
    """The steps of one batch of equal points, (B, n, p)."""

    def __init__(self, square: bool, device: torch.device) -> None:
        self._map, self._defect, self._reach = (
            (turned, turned_defect, TURNED) if square else (pulled, pulled_defect, PULLED)
        )
        self._margin = self._reach / (16 if square else 4)  # of a step of half the length
        self._late = Late(device)

    def advance(self, engine: Engine, x: Tensor, c: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """(where engine.advance goes, or close to it, which points are right), the latter None if it went by that."""
        before = self._late.take()
        if before is not None and before <= self._margin:
            y, defect = self._map(x, c, size)
            self._late.put(defect.max())
            return y, defect <= self._reach
        y = engine.advance(x, c, size)
        self._late.put(self._defect(c, size).max())
        return y, None


def short_steps(
    factor: Manifold, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> ShortSteps | None:
    """For float32 matrices that engines move by Cayley if they are square, by polar else; None for others."""
    if dtype != torch.float32 or len(shape) != 3 or shape[1] * shape[2] < FEW:
        return None
    square = shape[-1] == shape[-2]
    if type(factor) is Grassmann:  # of square matrices a single point
        return None if square else ShortSteps(square, device)
    if type(factor) not in (Stiefel, Orthogonal, SpecialOrthogonal):
        return None
    retraction = getattr(factor, "retraction", None)
    if retraction is not polar and not (square and retraction is cayley):
        return None
    return ShortSteps(square, device)
