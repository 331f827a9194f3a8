"""Rebasing by itself: after every k steps of the optimizer that trains the coordinates."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_scheduled: weakref.WeakSet[Any] = weakref.WeakSet()
_hooked = False


def schedule(coordinates: Any) -> None:
    """Rebase these coordinates of a `Trivialization(rebase_every=k)` from now on; does nothing without a k."""
    global _hooked
    if coordinates[0].rebase_every is None:
        return
    if not _hooked:
        register_optimizer_step_post_hook(_after_step)
        _hooked = True
    _scheduled.add(coordinates)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _scheduled:
        return
    if torch.compiler.is_compiling():  # counting is no part of the graph
        torch.compiler.disable(_after_step)(optimizer, args, kwargs)
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for coordinates in list(_scheduled):
        if id(coordinates.original) in stepped:
            coordinates.steps += 1
            if coordinates.steps % coordinates[0].rebase_every == 0:
                coordinates.rebase(optimizer)
