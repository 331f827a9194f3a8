"""What the options of a group mean for a step."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .bucket import Bucket
from .checks import Group
from .limits import can_look


def decays_in(bucket: Bucket, group: Group) -> bool:
    """Whether weight decay does anything to the points of the bucket."""
    return group.get("weight_decay", 0) != 0 and not bucket.factor.constant_norm


def rate(group: Group) -> float | Tensor:
    """The learning rate as a number that does not change the shape or dtype of what it multiplies."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def moves(group: Group, device: torch.device) -> bool | Tensor:
    """Whether lr is not 0; a tensor on the device where looking at lr would stall."""
    lr: float | Tensor = group.get("lr", 1.0)
    if not isinstance(lr, Tensor):
        return lr != 0
    return lr.item() != 0 if can_look(lr.device) else (lr.reshape(()) != 0).to(device)


def by_value(option: Any) -> Hashable:
    """A stand-in that is equal for equal options; tensors are compared by identity, which does not look at them."""
    if isinstance(option, Tensor):
        return id(option)
    return tuple(option) if isinstance(option, list) else option


def switches(group: Group) -> tuple[bool, ...]:
    """Which options are on: state has other keys only where one of them is switched."""
    return tuple([bool(value) for name, value in group.items() if name != "params" and not isinstance(value, Tensor)])


def same_options(defaults: Iterable[str], groups: Sequence[tuple[int, dict[str, Any]]]) -> tuple[int, ...]:
    """For each of these (place, group), the first place of a group with the same options."""
    if len(groups) == 1:
        return (groups[0][0],)
    first: dict[Hashable, int] = {}
    names = [name for name in defaults if name != "manifold"]
    return tuple(first.setdefault(tuple(by_value(g.get(name)) for name in names), i) for i, g in groups)
