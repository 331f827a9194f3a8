"""Parameters that a composition has taken the place of, or that were its parts: a step on them would train nothing."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

_replaced: Any = WeakIdKeyDictionary()  # Parameter -> how messages call it
_looked: weakref.WeakKeyDictionary[Optimizer, tuple[int, ...]] = weakref.WeakKeyDictionary()
_generations = itertools.count(1)
_generation = 0


def replace(parameter: nn.Parameter, who: str) -> None:
    """From now on no module has this Parameter, which messages call so."""
    global _generation
    number = next(_generations)
    if number == 1:
        register_optimizer_step_pre_hook(_before_step)
    _replaced[parameter] = who
    _generation = number


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_dynamo_compiling():  # looking is no part of the graph
        return
    state = (_generation, *(len(group["params"]) for group in optimizer.param_groups))
    if _looked.get(optimizer) == state:
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if (who := _replaced.get(p)) is not None:
                raise ValueError(
                    f"{who}, shape {tuple(p.shape)}, has other Parameters since constrain or unconstrain, and the one "
                    f"that this {type(optimizer).__name__} holds is of no module. Make the optimizer again."
                )
    _looked[optimizer] = state
