"""What a step of any optimizer means for the bases of the coordinates that it trained."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .chart import follow, groups_of, move_base

_scheduled: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # safe where other threads constrain
_trainers: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Optimizer]] = weakref.WeakKeyDictionary()
_inner: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_hooked = False


def schedule(coordinates: Any) -> None:
    """Move the base of these coordinates from now on, when its `Trivialization` says so."""
    global _hooked
    if coordinates[0].rebase_every == math.inf:
        return
    if not _hooked:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _hooked = True
    _scheduled[id(coordinates)] = coordinates


def unschedule(coordinates: Any) -> None:
    """Leave these coordinates alone, which are none any more."""
    _scheduled.pop(id(coordinates), None)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """An optimizer that steps others, as Lookahead or a sharded one, is one of its own kind: theirs are its parts."""
    if not torch.compiler.is_dynamo_compiling():
        _inner.update(each for each in vars(optimizer).values() if isinstance(each, Optimizer))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_dynamo_compiling():  # counting is no part of the graph, and neither is what else is alive
        torch.compiler.disable(_after_step)(optimizer, args, kwargs)
        return
    if not _scheduled or optimizer in _inner:
        return
    groups = {optimizer: groups_of(optimizer)}
    for coordinates in [each for reference in _scheduled.valuerefs() if (each := reference()) is not None]:
        group = groups[optimizer].get(id(coordinates.original))
        if group is None or not _was_trained(coordinates.original, group):
            continue
        _trainers.setdefault(coordinates, weakref.WeakSet()).add(optimizer)
        coordinates.steps += 1
        every, trainers = coordinates[0].rebase_every, []
        for each in list(_trainers[coordinates]):  # others may have been given other parameters since
            if each not in groups:
                groups[each] = groups_of(each)
            if id(coordinates.original) in groups[each]:
                trainers.append(each)
        if every is None:
            follow(coordinates, trainers)
        elif coordinates.steps % every == 0:
            move_base(coordinates, trainers)


def _was_trained(original: Tensor, group: dict[str, Any]) -> bool:
    """Whether a step could move it: that at lr = 0, by which torch.distributed makes a fresh state, moves nothing."""
    rate = group.get("lr", 1.0)
    if isinstance(rate, Tensor) and not rate.is_cpu:
        return original.grad is not None
    return original.grad is not None and rate != 0
