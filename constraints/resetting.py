"""reset_parameters of a module that has computed tensors: a weight becomes the point nearest to what it draws, or a
random one where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .names import lists_of

NAMES = ("reset_parameters", "_reset_parameters")


def make_resettable(kind: Any) -> None:
    """Let the resetting methods of this parametrized class, if it has any, draw plain Parameters."""
    plain = kind.__bases__[0]
    for name in NAMES:
        if hasattr(plain, name):
            setattr(kind, name, _resetting(plain, name))


def _resetting(plain: type[nn.Module], name: str) -> Callable[..., Any]:
    def reset(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stand_in, computed = _plain(module, plain)
        before = dict(stand_in.__dict__)
        free = {p: p.detach().clone() for p in module._parameters.values() if p is not None}
        result = getattr(plain, name)(stand_in, *args, **kwargs)
        lists: Any = lists_of(module)
        drawn: Any = stand_in._parameters  # which may have other Parameters now
        try:
            starts = {key: lists[key].start_of(drawn[key].detach()) for key in lists if hasattr(lists[key], "start_of")}
        except ValueError:
            with torch.no_grad():
                for p, value in free.items():
                    p.copy_(value)
            raise
        for key, start in starts.items():
            lists[key].start(start)
        for key, value in stand_in.__dict__.items():
            if before.get(key) is not value:
                module.__dict__[key] = value
        for mine, theirs in ((module._parameters, drawn), (module._modules, stand_in._modules)):
            mine.update({key: value for key, value in theirs.items() if key not in computed})  # type: ignore[misc]
        return result

    reset.__name__ = name
    return reset


def _plain(module: nn.Module, plain: type[nn.Module]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A module that shares all with this one but its computed tensors, for which it has Parameters; and those."""
    lists: Any = lists_of(module)
    computed = {  # what another parametrization computes is there to be read
        key: nn.Parameter(each.stand_in() if hasattr(each, "stand_in") else getattr(module, key).detach())
        for key, each in lists.items()
    }
    stand_in = plain.__new__(plain)
    stand_in.__dict__.update(module.__dict__)
    order = max([list(module._parameters), *(getattr(each, "order", []) for each in lists.values())], key=len)
    parameters = {**module._parameters, **computed}
    stand_in.__dict__["_parameters"] = {key: parameters[key] for key in sorted(parameters, key=_place(order))}
    kept = {key: child for key, child in module._modules.items() if key != "parametrizations"}
    stand_in.__dict__["_modules"] = kept
    return stand_in, computed


def _place(order: list[str]) -> Callable[[str], int]:
    return lambda key: order.index(key) if key in order else len(order)
