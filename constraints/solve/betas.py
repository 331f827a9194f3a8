"""How much of the last direction conjugate gradients keep: functions of a `Change`, passed as values.

g and g+ are the last gradient and the new one, d the last direction, y = g+ - g, all carried to the new point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .space import Numbers, Rows


class Change(NamedTuple):
    """What a rule may ask for; inner: the metric at the new point."""

    new: Rows
    old: Rows
    d: Rows
    inner: Callable[[Rows, Rows], Numbers]


Beta = Callable[[Change], Numbers]


def hager_zhang(change: Change) -> Numbers:
    """max(<y - 2 d <y, y> / <d, y>, g+> / <d, y>, -1 / (|d| min(0.01, |g|))).

    Source: Hager & Zhang, A new conjugate gradient method with guaranteed descent (2005), (1.3), (1.6).
    """
    g, old, d, inner = change
    y = g - old
    dy = inner(d, y)
    beta = (inner(y, g) - 2 * inner(y, y) * inner(d, g) / dy) / dy
    floor = -1 / (inner(d, d).sqrt() * inner(old, old).sqrt().clamp_max(0.01))
    return torch.maximum(beta, floor)


def polak_ribiere(change: Change) -> Numbers:
    """max(0, <g+, y> / <g, g>). Source: Polak & Ribiere (1969); Powell (1984) for the maximum."""
    g, old, _, inner = change
    return (inner(g, g - old) / inner(old, old)).clamp_min(0)


def hestenes_stiefel(change: Change) -> Numbers:
    """max(0, <g+, y> / <d, y>). Source: Hestenes & Stiefel (1952)."""
    g, old, d, inner = change
    y = g - old
    return (inner(g, y) / inner(d, y)).clamp_min(0)


def fletcher_reeves(change: Change) -> Numbers:
    """<g+, g+> / <g, g>. Source: Fletcher & Reeves (1964)."""
    g, old, _, inner = change
    return inner(g, g) / inner(old, old)
