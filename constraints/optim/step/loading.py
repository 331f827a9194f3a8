"""What is asked of saved state before anything of it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from manifolds import Manifold

from .checks import Group, name_in, stacks_of
from .parts import key_of, part_of
from .plan import Member

SCHEDULED = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "params", "param_names"}
)
"""What schedulers of torch leave in groups, and torch itself."""


def named(group: Group) -> Group:
    """A group as it is saved: the repr of the manifold in its place."""
    manifold = group.get("manifold")
    return {**group, "manifold": None if manifold is None else repr(manifold)}


def check_kind(optimizer: str, saved: Sequence[Group], groups: Sequence[Group]) -> None:
    """ValueError where a saved group is held on another manifold, or has the options of an optimizer of another kind:
    some that this one has not, and not all that it has. Options that are new since it was saved are no reason."""
    if [len(g["params"]) for g in saved] != [len(g["params"]) for g in groups]:
        return  # torch says so
    for i, (group, other) in enumerate(zip(groups, saved, strict=True)):
        if named(group)["manifold"] != other.get("manifold"):
            raise ValueError(
                f"group {i} holds its parameters on {group['manifold']}, but the saved state is of a group on "
                f"{other.get('manifold')}. Constrain the model as it was when the state was saved."
            )
        unknown, missing = other.keys() - group.keys() - SCHEDULED, group.keys() - other.keys() - SCHEDULED
        if unknown and missing:
            raise ValueError(
                f"the saved state of group {i} is of another optimizer than {optimizer}: it has the options "
                f"{', '.join(sorted(unknown))}, and not {', '.join(sorted(missing))}. Make the optimizer that it was "
                f"saved by, or start {optimizer} without it."
            )


def name_of_value(value: Any) -> str:
    """What stands in a state dict for an option that is a function."""
    return str(getattr(value, "__qualname__", None) or repr(value))


def check_loaded(
    optimizer: str,
    loaded: dict[str, Any],
    groups: Sequence[Group],
    numbers: frozenset[str],
    values: Sequence[str] = (),
    mixed: bool = False,
) -> None:
    """`check_kind`, and ValueError where saved state has tensors that do not fit the factors."""
    check_kind(optimizer, loaded["param_groups"], groups)
    if [len(g["params"]) for g in loaded["param_groups"]] != [len(g["params"]) for g in groups]:
        return  # torch says so
    for i, (group, saved) in enumerate(zip(groups, loaded["param_groups"], strict=True)):
        manifold = group["manifold"]
        for name in values:
            if saved.get(name, name_of_value(group[name])) != name_of_value(group[name]):
                raise ValueError(
                    f"group {i} has {name}={name_of_value(group[name])}, but the saved state is of a group with "
                    f"{saved[name]}. Make the optimizer as it was when the state was saved."
                )
        for key, p in zip(saved["params"], group["params"], strict=True):
            if manifold is not None:
                wrong = misfit(p, manifold, loaded["state"].get(key, {}), numbers, mixed)
                if wrong is not None:
                    raise ValueError(
                        f"the saved state of {name_in(groups, p)} does not fit its shape {tuple(p.shape)}: {wrong} on "
                        f"{manifold}. Load the state of an optimizer of the same kind, for a model constrained in the "
                        f"same way."
                    )


def check_fits(
    groups: Sequence[Group],
    members: Sequence[Member],
    state: Mapping[Tensor, Mapping[str, Any]],
    numbers: frozenset[str],
    mixed: bool,
) -> None:
    """ValueError where the state of a parameter is of another shape than it has now."""
    for p, manifold, *_ in members:
        if p in state and (wrong := misfit(p, manifold, state[p], numbers, mixed)) is not None:
            raise ValueError(
                f"{name_in(groups, p)} has the shape {tuple(p.shape)} now, and another one when its state was made: "
                f"{wrong} on {manifold}. Nothing was changed. Drop its state, optimizer.state.pop(parameter), to start "
                f"again, or make a new optimizer."
            )


def misfit(p: Tensor, manifold: Manifold, entry: Mapping[str, Any], numbers: frozenset[str], mixed: bool) -> str | None:
    """What of this state does not fit the factors of p; None if all does."""
    stacks = stacks_of(p, manifold)
    parts = [part_of(entry, i, len(stacks)) for i in range(len(stacks))]
    keys = sorted(set().union(*parts))
    known = {"step"} | {key_of(key, i, len(stacks)) for key in keys for i in range(len(stacks))}
    for key in [*keys, *sorted(entry.keys() - known)]:
        sizes = [math.prod(s.shape[: s.dim() - f.ndim]) if key in numbers else s.numel() for f, s in stacks]
        shapes = [tuple(part[key].shape) for part in parts if key in part] or [tuple(entry[key].shape)]
        if key == "drift":  # some factors need none
            sizes = [1 for _ in shapes]
        elif mixed:
            sizes = [size for size, part in zip(sizes, parts, strict=True) if key in part]
        if [math.prod(shape) for shape in shapes] != sizes:
            return f"{key!r} has shapes {shapes}, where tensors of {sizes} numbers are needed"
    return None
