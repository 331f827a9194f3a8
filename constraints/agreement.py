"""Whether processes that should hold the same constrained weights do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from .held import held_once
from .names import kind_of
from .sharding import is_sharded


@torch.no_grad()
def check_agreement(model: nn.Module) -> None:
    """ValueError, on all processes, if a constrained tensor that is not sharded differs in a bit between them.

    Sums of the bits of every such tensor are compared by two all-reduces of one number per tensor: inexpensive enough
    for every hundredth step. All processes of the default group call it. It sees what drifts apart where nobody
    averages gradients, as under `ignored_params=` of fully_shard. Pieces of sharded tensors are not looked at.
    Raises RuntimeError where there is no process group.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    >>> check_agreement(layer)  # says nothing: they agree
    >>> torch.distributed.destroy_process_group()
    """
    if not distributed.is_initialized():
        raise RuntimeError("check_agreement compares processes; call torch.distributed.init_process_group first.")
    names, sums = [], []
    for each in held_once(model):
        coordinates: Any = each.coordinates
        if coordinates is None:
            kept = [each.owner.get_parameter(each.attribute)]
        else:
            kept = [coordinates.original, coordinates[0].base_point]
        if not any(is_sharded(t) for t in kept):
            names.append(each.name)
            sums.append(torch.stack([_bits(t.detach()) for t in kept]).sum())
    if not sums:
        return
    low = torch.stack(sums)
    high = low.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    apart = [name for name, differs in zip(names, (low != high).tolist(), strict=True) if differs]
    if apart:
        raise ValueError(
            f"{', '.join(apart)} of {kind_of(model)} differ between processes. Average all gradients before each "
            f"step, as DistributedDataParallel and fully_shard do, and begin again with equal weights: load one "
            f"checkpoint on all processes."
        )


def _bits(t: Tensor) -> Tensor:
    """The bits of t, added as integers, which has no order; each with a weight of its place."""
    t = (torch.view_as_real(t) if t.is_complex() else t).contiguous().flatten()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    bits = t.view(whole).to(torch.int64)
    return (bits * (2 * torch.arange(len(bits), device=t.device) + 1)).sum()
