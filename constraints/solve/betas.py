"""What conjugate gradients add to -grad f: functions of a `Change`, passed as values.

g and g+ are the last gradient and the new one, d the last direction, y = g+ - g, all carried to the new point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .numbers import Number, larger, over, smaller, sqrt
from .space import Rows


class Change(NamedTuple):
    """What a rule may ask for; inner: the metric at the new point."""

    new: Rows
    old: Rows
    d: Rows
    inner: Callable[[Rows, Rows], Number]


class Terms(NamedTuple):
    """d <- -g+ + beta d + of_change y; d <- -g+ where one of these is not finite, or first is not positive.

    first: the step to try first, as a multiple of the last one; None for what the last curvature suggests.

    >>> Terms(0.5)
    Terms(beta=0.5, of_change=0.0, first=None)
    """

    beta: Number
    of_change: Number = 0.0
    first: Number | None = None


Beta = Callable[[Change], Number | Terms]


def memoryless_bfgs(change: Change) -> Terms:
    """beta of `hager_zhang` before its maximum, and <d, g+> / <d, y>: -H g+ with H of BFGS from the last pair (d, y)
    alone, over its scale <d, y> / <y, y>, which times the last step is the first one: as a rule no other is tried.

    Source: Shanno, Conjugate gradient methods with inexact searches (1978), (12).
    """
    g, old, d, inner = change
    y = g - old
    yy, dg = inner(y, y), inner(d, g)
    dy = dg - inner(d, old)
    return Terms(over(inner(y, g) - over(2 * yy * dg, dy), dy), over(dg, dy), over(dy, yy))


def hager_zhang(change: Change) -> Number:
    """max(<y - 2 d <y, y> / <d, y>, g+> / <d, y>, -1 / (|d| min(0.01, |g|))).

    Source: Hager & Zhang, A new conjugate gradient method with guaranteed descent (2005), (1.3), (1.6).
    """
    g, old, d, inner = change
    y = g - old
    dy = inner(d, y)
    beta = over(inner(y, g) - over(2 * inner(y, y) * inner(d, g), dy), dy)
    return larger(beta, over(-1.0, sqrt(inner(d, d)) * smaller(sqrt(inner(old, old)), 0.01)))


def polak_ribiere(change: Change) -> Number:
    """max(0, <g+, y> / <g, g>). Source: Polak & Ribiere (1969); Powell (1984) for the maximum."""
    g, old, _, inner = change
    return larger(over(inner(g, g - old), inner(old, old)), 0.0)


def hestenes_stiefel(change: Change) -> Number:
    """max(0, <g+, y> / <d, y>). Source: Hestenes & Stiefel (1952)."""
    g, old, d, inner = change
    y = g - old
    return larger(over(inner(g, y), inner(d, y)), 0.0)


def fletcher_reeves(change: Change) -> Number:
    """<g+, g+> / <g, g>. Source: Fletcher & Reeves (1964)."""
    g, old, _, inner = change
    return over(inner(g, g), inner(old, old))
