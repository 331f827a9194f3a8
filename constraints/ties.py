"""Modules elsewhere in the process that hold a Parameter: they cannot be seen from the module that is constrained."""

from __future__ import annotations

import gc
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .method import Site


def check_outside(groups: Collection[list[Site]]) -> None:
    """ValueError if a module that is at none of the sites holds one of their Parameters, too."""
    if not (_unknown(groups) and _holders(groups)):
        return
    gc.collect()  # a module that nothing uses any more is no tie
    for site, holder in _holders(groups):
        kind = parametrize.type_before_parametrizations(holder).__name__
        raise ValueError(
            f"{site}, shape {tuple(site.parameter.shape)}, is tied to a tensor of a {kind} outside the module that was "
            f"given, and Trivialization would untie them. Constrain the module that holds both, with both names, or "
            f"use Riemannian(), which leaves one Parameter."
        )


def _unknown(groups: Collection[list[Site]]) -> list[dict[str, Any]]:
    """Dicts that hold one of the Parameters by a name, but are of no module at the sites."""
    parameters = {id(sites[0].parameter): sites[0].parameter for sites in groups}
    known = {id(site.owner._parameters) for sites in groups for site in sites}
    referrers = gc.get_referrers(*parameters.values())  # as one pass over the heap
    return [
        each
        for each in referrers
        if type(each) is dict
        and each is not parameters
        and id(each) not in known
        and any(type(key) is str and id(value) in parameters for key, value in list(each.items()))
    ]


def _holders(groups: Collection[list[Site]]) -> list[tuple[Site, nn.Module]]:
    unknown = {id(each): each for each in _unknown(groups)}
    found = []
    for each in gc.get_objects() if unknown else []:
        if issubclass(type(each), nn.Module):
            held = object.__getattribute__(each, "__dict__").get("_parameters")
            if id(held) in unknown:
                values = {id(p) for p in held.values()}
                found += [(sites[0], each) for sites in groups if id(sites[0].parameter) in values]
    return found
