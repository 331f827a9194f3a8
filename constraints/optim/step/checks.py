"""What an optimizer asks of parameter groups and of saved state before it takes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold, tolerance
from manifolds.engine import engine
from manifolds.kernels.precision import exact_products

from ...given import kind_of_value
from ...records import constrained, name_of
from ...sharding import is_sharded, whole
from ...values import master_dtype, rounding
from ...ways import point_code, which_off

Group = dict[str, Any]


def check_at_least_zero(group: Group, *names: str) -> None:
    """ValueError for an option that is negative, NaN or a tensor of several elements, TypeError for no number."""
    for name in names:
        value = group[name]
        check_number(name, value)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} is a number or a tensor of one element; got shape {tuple(value.shape)}.")
        if not value >= 0:
            raise ValueError(f"{name} is at least 0; got {value}.")


def check_number(name: str, value: Any) -> None:
    """TypeError for what is neither a real number nor a tensor."""
    if not isinstance(value, Tensor) and not hasattr(value, "__float__"):
        way = f" Convert it, as by float({value!r:.40})." if isinstance(value, str) else ""
        raise TypeError(f"{name} is a number or a tensor of one element; got {kind_of_value(value)}.{way}")


def check_group(optimizer: str, group: Group, groups: Sequence[Group], takes_shards: bool = False) -> None:
    """ValueError for a parameter that is held on another manifold than its group's, or is off it; TypeError for a
    "manifold" that is none. A manifold given as a class becomes an instance."""
    manifold = group["manifold"]
    if isinstance(manifold, type) and issubclass(manifold, Manifold):
        manifold = group["manifold"] = manifold()
    if manifold is not None and not isinstance(manifold, Manifold):
        raise TypeError(f'the "manifold" of a parameter group is a Manifold or None; got {manifold!r}.')
    known = constrained()
    for p in group["params"]:
        records, attribute = known.get(id(p), (None, ""))
        held = None if records is None else records.manifolds[attribute]
        if held is not None or manifold is not None:
            _check_shards(optimizer, p, name_in(groups, p), takes_shards)
        if held is not None and held != manifold:
            raise ValueError(
                f"{name_in(groups, p)} of shape {tuple(p.shape)} is constrained to {held}, but came "
                f"{'without a manifold' if manifold is None else f'in a group of {manifold}'}. Write "
                f"{optimizer}(model, ...), or param_groups(model) for groups that carry their manifold."
            )
        if manifold is not None:
            _check_value(groups, p, manifold)


def check_ways(optimizer: str, group: Group) -> None:
    """ValueError for the options of torch that say how a step is computed, where there is no such way."""
    if group["differentiable"]:
        raise ValueError(
            f"{optimizer} takes no differentiable=True: a step on a manifold is made without derivatives. Hold the "
            f"weights by Trivialization(), and give param_groups(model) to the optimizer of torch.optim."
        )
    if group["foreach"] and group["fused"]:
        raise ValueError(f"foreach and fused of {optimizer} are two ways of one step; at most one of them is True.")
    if group["fused"] and group["manifold"] is None and any(p.is_complex() for p in group["params"]):
        raise ValueError(f"fused=True of {optimizer} takes real free tensors; got complex ones. Pass fused=None.")


def warn_of_decay(group: Group, unasked: float) -> bool:
    """Warn if decay that was asked for does nothing on factors of this group, and say whether it was said."""
    if group["manifold"] is None or group.get("weight_decay", 0) in (0, unasked):
        return False
    factors = {str(f) for p in group["params"] for f, _ in stacks_of(p, group["manifold"]) if f.constant_norm}
    if factors:
        warnings.warn(
            f"weight_decay does nothing on {' and '.join(sorted(factors))}, where all points have one norm, and is "
            f"left out there. Pass weight_decay=0 in the groups that carry a manifold.",
            stacklevel=5,
        )
    return bool(factors)


def name_in(groups: Sequence[Group], p: Tensor) -> str:
    """What messages call p: its name in the groups, else the one under which it was constrained, else its place."""
    for i, group in enumerate(groups):
        for j, other in enumerate(group["params"]):
            if other is p:
                names = group.get("param_names")
                return str(names[j]) if names else name_of(p) or f"parameter {j} of group {i}"
    raise AssertionError("the tensor is in no group")


def stacks_of(p: Tensor, manifold: Manifold) -> list[tuple[Manifold, Tensor]]:
    """The stacks of factors of p, of which only the shapes are asked."""
    return engine(manifold).split(torch.empty(p.shape, device="meta") if is_sharded(p) else p.detach())


def _check_shards(optimizer: str, p: Any, who: str, takes_shards: bool) -> None:
    """ValueError where p is sharded, and this optimizer takes none, or not in this way."""
    if not is_sharded(p):
        return
    kinds = {type(placement).__name__ for placement in p.placements}
    if not takes_shards:
        raise ValueError(
            f"{who}, shape {tuple(p.shape)}, is sharded over processes, as by fully_shard, and {optimizer} takes whole "
            f"parameters. RiemannianAdam, RiemannianAdamW, RiemannianSGD and RiemannianMuon take sharded ones."
        )
    if p.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"{who}, shape {tuple(p.shape)}, is sharded over a mesh that this process is not on. Give {optimizer} here "
            f"the parameters that this process has a part of; without any it needs no optimizer."
        )
    if kinds - {"Shard", "Replicate"}:
        raise ValueError(
            f"{who}, shape {tuple(p.shape)}, is sharded as {tuple(p.placements)}; {optimizer} takes Shard and "
            f"Replicate. Where fully_shard and tensor parallelism cut one axis, let fully_shard cut another: by a "
            f"shard_placement_fn that returns Shard(1), or another axis, for this parameter."
        )


def _check_value(groups: Sequence[Group], p: Tensor, manifold: Manifold) -> None:
    """ValueError where p is not on the manifold, TypeError where its dtype cannot be."""
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(f"{name_in(groups, p)} has dtype {p.dtype}; {manifold} holds real or complex floats.")
    try:
        manifold.dim(p.shape)
    except ValueError as error:
        raise ValueError(f"{name_in(groups, p)} does not hold points of {manifold}: {error}") from error
    x = whole(p.detach()).to(master_dtype(p.dtype))
    limit = max(rounding(p.dtype), tolerance(torch.float32))  # a float64 weight may come from a float32 model
    with exact_products(p.device.type):
        feasible = bool((manifold.residual(x) <= limit).all())
    if not feasible:
        raise ValueError(
            f"{name_in(groups, p)} of shape {tuple(p.shape)} is not on "
            f"{manifold}{which_off(manifold, x, limit)}. Use constrain(module, name, {manifold}, "
            f"Riemannian()), which takes the nearest point or says how to start, or, under torch.no_grad(), "
            f"weight.copy_({point_code(manifold, p, 'weight')})."
        )
