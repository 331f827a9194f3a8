"""Every place of a tied tensor, also in modules that cannot be seen from the one that is constrained."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

FEW = 4  # the heap is asked who refers to so many Parameters in the time in which it is searched for modules


def places_of(
    parameters: Collection[nn.Parameter], known: Collection[dict[str, Any]]
) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """(module, attribute, Parameter) wherever in the process a module has one of these Parameters, in whose
    `_parameters` that is none of the known ones."""
    wanted, seen = {id(p) for p in parameters}, {id(each) for each in known}
    if len(wanted) <= FEW and not _others(parameters, wanted, seen):
        return []
    if not list(_places(wanted, seen)):
        return []
    gc.collect()  # a module that nothing uses any more is no tie
    return list(_places(wanted, seen))


def places_in(lists: Collection[ParametrizationList]) -> list[tuple[nn.Module, str]]:
    """(module, attribute) wherever in the process a tensor is computed by one of these."""
    wanted = {id(each) for each in lists}
    return places_where(lambda each: id(each) in wanted)


def places_where(wanted: Callable[[nn.Module], bool]) -> list[tuple[nn.Module, str]]:
    """(module, attribute) wherever in the process a tensor is computed by a list that is wanted."""
    found = []
    for owner in _modules():
        own = vars(owner).get("_modules", {}).get("parametrizations")
        if isinstance(own, nn.ModuleDict):
            found += [(owner, attribute) for attribute, each in own.items() if wanted(each)]
    return found


def _others(parameters: Collection[nn.Parameter], wanted: set[int], seen: set[int]) -> bool:
    """Whether a dict that is none of those seen has one of the Parameters under a name."""
    return any(
        type(each) is dict
        and id(each) not in seen
        and any(type(key) is str and id(value) in wanted for key, value in list(each.items()))
        for each in gc.get_referrers(*parameters)
    )


def _places(wanted: set[int], seen: set[int]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in _modules():
        held = vars(owner).get("_parameters", {})
        if id(held) not in seen:
            yield from ((owner, attribute, p) for attribute, p in list(held.items()) if id(p) in wanted)


def _modules() -> list[nn.Module]:
    """Every module of the process."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.Module)}
    return [each for each in objects if type(each) in kinds]
