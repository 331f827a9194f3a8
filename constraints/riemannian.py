"""The Riemannian engine: the weight stays a plain Parameter, and an optimizer moves it on its manifold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifolds import Manifold

from . import watch as watch  # which starts with the first record
from .coordinates import coordinates_of
from .method import Method, Site
from .names import check_module
from .records import constrained, forget, record, recorded
from .recurrent import watch_sharded


@dataclass(frozen=True)
class Riemannian(Method):
    """The weight is the Parameter itself, and only an optimizer of `constraints.optim` may move it.

    Name, state_dict key and forward pass are those of the plain module. `requires_grad_`, `.to`, deepcopy and pickle
    keep the constraint. A step of any other optimizer raises ValueError, for it would leave the manifold silently; a
    class of your own that moves each group on its "manifold" says so by an attribute `keeps_manifolds = True`. A step
    also raises where a parametrization or pruning computes the weight from another Parameter, or where the Parameter or
    its `.data` was changed in place, as by torch.nn.init, to what is not on the manifold; on accelerators `.data` is
    looked at by every 100th step only. A half precision Parameter holds the point rounded; the optimizers keep it in
    float32.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> sorted(layer.state_dict())
    ['bias', 'weight']
    """

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16

    def hold(self, sites: Sequence[Site], manifold: Manifold, value: Tensor) -> None:
        parameter = sites[0].parameter
        rounded = value.to(parameter.dtype)
        if not torch.equal(parameter, rounded):
            with torch.no_grad():
                parameter.copy_(rounded)
            parameter.grad = None
        for site in sites:
            record(site.owner, site.attribute, manifold, site.name)

    def release(self, places: Sequence[tuple[nn.Module, str]]) -> Sequence[tuple[nn.Module, str]]:
        owner, attribute = places[0]
        forget(owner._parameters[attribute])
        return places


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Every Parameter of the module, one group for each manifold: what the optimizers of `constraints.optim` take.

    A group is {"params": [(dotted name, Parameter), ...], "manifold": M}, with M None for unconstrained parameters. The
    coordinates of a `Trivialization` are a group of their own, the last, with M None and "weight_decay": 0, for decay
    would pull the weight towards its base; torch's optimizers take these groups too. Bases, which nothing trains, are
    left out. A tied Parameter comes once. Add options to a group as for any torch optimizer: `groups[0]["lr"] = 1e-4`.
    Raises ValueError where a constrained Parameter is none any more, as after torch.nn.utils.parametrize or pruning.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> [group["manifold"] for group in param_groups(layer)]
    [Stiefel, None]
    """
    check_module(module, "param_groups")
    for each in module.modules():
        recorded(each)
    watch_sharded(module)
    held = {key: records.manifolds[attribute] for key, (records, attribute) in constrained().items()}
    trivial: Any = [coordinates for each in module.modules() for _, coordinates in coordinates_of(each)]
    computed, bases = {id(each.original) for each in trivial}, {id(each[0].base_point) for each in trivial}
    groups: dict[tuple[Manifold | None, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, p in module.named_parameters():
        if id(p) in bases:
            continue
        groups.setdefault((held.get(id(p)), id(p) in computed), []).append((name, p))
    return [
        {"params": named, "manifold": manifold, **({"weight_decay": 0.0} if is_computed else {})}
        for (manifold, is_computed), named in sorted(groups.items(), key=lambda group: group[0][1])
    ]
