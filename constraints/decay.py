"""Weight decay on the coordinates of a trivialization, of which every optimizer is warned, once."""

from __future__ import annotations

import itertools
import warnings
import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # safe where other threads constrain
_looked: weakref.WeakKeyDictionary[Optimizer, tuple[Any, ...]] = weakref.WeakKeyDictionary()
_generations = itertools.count(1)
_generation = 0
_warned = ("warned",)


def enlist(coordinates: Any) -> None:
    """Have optimizers warn that decay these coordinates, from now on."""
    global _generation
    _live[id(coordinates)] = coordinates
    number = next(_generations)
    if number == 1:
        register_optimizer_step_pre_hook(_before_step)
    _generation = number


def delist(coordinates: Any) -> None:
    """They are coordinates no more."""
    _live.pop(id(coordinates), None)


def living() -> list[Any]:
    """The coordinates of every trivialized tensor of the process; a tied one has as many as places."""
    return [each for reference in _live.valuerefs() if (each := reference()) is not None]


def optimizers() -> list[Optimizer]:
    """The optimizers that have made steps since there are coordinates."""
    return [each for reference in _looked.keyrefs() if (each := reference()) is not None]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_dynamo_compiling():  # looking is no part of the graph
        return
    looked = _looked.get(optimizer)
    groups = optimizer.param_groups
    state = (_generation, *((len(group["params"]), group.get("weight_decay", 0)) for group in groups))
    if looked == state or looked is _warned:
        return
    _looked[optimizer] = state
    decayed = {id(p) for group in groups if group.get("weight_decay", 0) != 0 for p in group["params"]}
    for each in living() if decayed else []:
        if id(each.original) in decayed:
            _looked[optimizer] = _warned
            warnings.warn(
                f"weight_decay of this {type(optimizer).__name__} acts on the coordinates of {each[0].name}, and pulls "
                f"the weight towards its base, not towards 0. Make the optimizer of constraints.param_groups(model), "
                f"which leaves decay out there, or pass weight_decay=0 in the group of the coordinates.",
                stacklevel=3,
            )
            return
