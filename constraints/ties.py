"""Every place of a tied tensor, also in modules that cannot be seen from the one that is constrained."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .names import lists_of

FEW = 4  # the heap is asked who refers to so many Parameters in the time in which it is searched for modules


def places_of(
    parameters: Collection[nn.Parameter], known: Collection[dict[str, Any]]
) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """(module, attribute, Parameter) wherever in the process a module has one of these Parameters, in whose
    `_parameters` that is none of the known ones."""
    wanted, seen = {id(p) for p in parameters}, {id(each) for each in known}
    _thaw()
    if len(wanted) <= FEW and not _is_elsewhere(parameters) and not _others(parameters, wanted, seen):
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
        found += [(owner, attribute) for attribute, each in lists_of(owner).items() if wanted(each)]
    return found


def _is_elsewhere(parameters: Collection[nn.Parameter]) -> bool:
    """Whether others than Python may have one of the Parameters: a graph, or a module of torch.jit."""
    return any(p._use_count() > 1 if hasattr(p, "_use_count") else True for p in parameters)


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
        if isinstance(owner, torch.jit.ScriptModule):
            held = dict(owner.named_parameters(recurse=False))
        if id(held) not in seen:
            yield from ((owner, attribute, p) for attribute, p in list(held.items()) if id(p) in wanted)


def _thaw() -> None:
    """Bring what `gc.freeze` has put out of sight back, or a tie would not be found, and come untied silently."""
    if gc.get_freeze_count():
        gc.unfreeze()


def _modules() -> list[nn.Module]:
    """Every module of the process."""
    _thaw()
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.Module)}
    return [each for each in objects if type(each) in kinds]
