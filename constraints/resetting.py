"""reset_parameters of a module that has trivialized tensors: the weight becomes the point nearest to what it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

NAMES = ("reset_parameters", "_reset_parameters")


def make_resettable(kind: Any) -> None:
    """Let the resetting methods of this parametrized class, if it has any, draw plain Parameters."""
    plain = kind.__bases__[0]
    for name in NAMES:
        if hasattr(plain, name):
            setattr(kind, name, _resetting(plain, name))


def _resetting(plain: type[nn.Module], name: str) -> Callable[..., Any]:
    def reset(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stand_in, drawn = _plain(module, plain)
        before = dict(stand_in.__dict__)
        result = getattr(plain, name)(stand_in, *args, **kwargs)
        for key, value in stand_in.__dict__.items():
            if before.get(key) is not value:
                module.__dict__[key] = value
        for attribute, parameter in drawn.items():
            lists: Any = module._modules["parametrizations"]
            lists[attribute].start(parameter.detach())
        return result

    reset.__name__ = name
    return reset


def _plain(module: nn.Module, plain: type[nn.Module]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A module that shares all with this one but its trivialized tensors, for which it has Parameters; and those."""
    lists: Any = module._modules["parametrizations"]
    computed = {
        key: nn.Parameter(getattr(module, key).detach(), False) for key in lists if not hasattr(lists[key], "start")
    }
    drawn = {key: nn.Parameter(lists[key].stand_in()) for key in lists if hasattr(lists[key], "start")}
    stand_in = plain.__new__(plain)
    stand_in.__dict__.update(module.__dict__)
    order = max([list(module._parameters), *(getattr(each, "order", []) for each in lists.values())], key=len)
    parameters = {**module._parameters, **computed, **drawn}
    stand_in.__dict__["_parameters"] = {key: parameters[key] for key in sorted(parameters, key=_place(order))}
    stand_in.__dict__["_modules"] = {key: child for key, child in module._modules.items() if child is not lists}
    return stand_in, drawn


def _place(order: list[str]) -> Callable[[str], int]:
    return lambda key: order.index(key) if key in order else len(order)
