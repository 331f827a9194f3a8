"""State of an optimizer that is of no use any more: NaN has got into it, or it is that of a weight before another was
assigned."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .decay import optimizers
from .sharding import whole
from .values import is_finite

_before: weakref.WeakKeyDictionary[Optimizer, dict[int, Any]] = weakref.WeakKeyDictionary()


def is_spoiled(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether what the optimizer keeps for the parameter has NaN or infinite entries, or is of before the last
    `assigned`; LBFGS has one state for all."""
    state = _state(optimizer, parameter)
    if state is not None and _before.get(optimizer, {}).pop(id(parameter), None) is state:
        return True
    return not all(bool(is_finite(whole(t))) for t in _tensors(state) if t.is_floating_point() or t.is_complex())


def assigned(parameter: Tensor) -> None:
    """What optimizers keep for these coordinates is of another base from now on."""
    for optimizer in optimizers():
        state = _state(optimizer, parameter)
        if state:
            _before.setdefault(optimizer, {})[id(parameter)] = state


def _state(optimizer: Optimizer, parameter: Tensor) -> Any:
    if not isinstance(optimizer, LBFGS):
        return optimizer.state.get(parameter)
    held = any(p is parameter for group in optimizer.param_groups for p in group["params"])
    return next(iter(optimizer.state.values()), None) if held else None


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(each)
