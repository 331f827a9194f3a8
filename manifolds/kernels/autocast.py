"""Maps and derivatives in the precision of their tensors, whatever autocast says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

MAPS = (
    *("compose", "contains", "decompose", "distance", "exp", "geodesic", "gradient", "inner", "log", "mean", "nearest"),
    *("norm", "project", "random", "random_points", "random_tangent", "residual", "retract", "transport"),
)
"""Methods that compute points, vectors and lengths."""

P = ParamSpec("P")
R = TypeVar("R")
AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass in the precision of its tensors, also where `loss.backward()` is called under autocast."""

    @functools.wraps(backward)
    def exact(ctx: Any, grad: Tensor | None, *rest: Any) -> Any:
        device = "cpu" if grad is None else grad.device.type
        # before torch 2.9 a graph cannot hold the question
        has = device in AUTOCAST if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)
        if not has or not torch.is_autocast_enabled(device):
            return backward(ctx, grad, *rest)
        with torch.autocast(device, enabled=False):
            return backward(ctx, grad, *rest)

    return exact


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """A map of points without autocast, whose tensors in half precision come as float32.

    Products in bfloat16 would leave a point off its set by 3e-3, and nothing would say so.
    """

    @functools.wraps(method)
    def exact(*args: P.args, **options: P.kwargs) -> R:
        if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():  # a tenth of asking each
            return method(*args, **options)
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    wide: Any = {name: _wide(value) for name, value in options.items()}
                    return exact(*map(_wide, args), **wide)
        return method(*args, **options)

    return exact


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def maps_in_full_precision(kind: type) -> None:
    """`in_full_precision` for the maps that this class, of manifolds or compositions, writes itself."""
    for name in MAPS:
        if inspect.isfunction(method := vars(kind).get(name)):
            setattr(kind, name, in_full_precision(method))
