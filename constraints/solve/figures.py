"""Drawings of histories and checks, for who has matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import History


def draw_history(history: History, axes: Any, line: dict[str, Any]) -> Any:
    """Gradient norm over steps."""
    axes = _axes(axes)
    axes.semilogy(history.norm, **{"marker": ".", **line})
    axes.set(xlabel="step", ylabel="gradient norm")
    return axes


def draw_check(sizes: Sequence[float], errors: Sequence[float], expected: int, what: str, axes: Any) -> Any:
    """Errors of a Taylor model over step lengths, beside the slope they should have."""
    axes = _axes(axes)
    axes.loglog(sizes, errors, ".-", label=f"error of the {what}")
    # through the largest error that is not rounding
    middle = len(sizes) // 2
    guide = [errors[middle] * (t / sizes[middle]) ** expected for t in sizes]
    axes.loglog(sizes, guide, "--", color="grey", label=f"slope {expected}")
    axes.set(xlabel="step length t", ylabel="|f(R(tv)) - model(t)|")
    axes.legend(frameon=False)
    return axes


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install matplotlib, or use the numbers themselves.") from error
    return pyplot.subplots(layout="constrained")[1]
