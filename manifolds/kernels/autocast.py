"""Derivatives in the precision of their tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


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
