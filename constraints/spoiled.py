"""State of an optimizer that NaN has got into: every further step would be NaN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .values import is_finite


def is_spoiled(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether what the optimizer keeps for the parameter has NaN or infinite entries; LBFGS has one state for all."""
    state = list(optimizer.state.values()) if isinstance(optimizer, LBFGS) else optimizer.state.get(parameter, {})
    return not all(bool(is_finite(t)) for t in _tensors(state) if t.is_floating_point() or t.is_complex())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(each)
