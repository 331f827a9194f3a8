"""The state of one parameter: tensors only, so that whatever saves, shards or moves state knows it.

A parameter whose factors make several stacks, as of Stiefel * Euclidean**2, has one tensor for each stack, in the order
of `Engine.split`, under the keys "exp_avg:0", "exp_avg:1", ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def key_of(key: str, part: int, parts: int) -> str:
    """The key of the state of one of so many stacks."""
    return key if parts == 1 else f"{key}:{part}"


def part_of(entry: Mapping[str, Any], part: int, parts: int) -> dict[str, Any]:
    """The state of one of so many stacks, without their number in its keys. "step" is that of all of them."""
    if parts == 1:
        return {key: value for key, value in entry.items() if key != "step"}
    return {key.removesuffix(f":{part}"): value for key, value in entry.items() if key.endswith(f":{part}")}


def tensors_only(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Saved state with a key for each tensor, where there is a tuple of them under one key."""
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, (tuple, list)) and all(isinstance(each, Tensor) for each in value):
            flat.update({key_of(key, i, len(value)): each for i, each in enumerate(value)})
        else:
            flat[key] = value
    return flat
