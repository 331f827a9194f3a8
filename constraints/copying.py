"""Copies of a module that has parametrized tensors: deepcopy at any time, pickle and torch.save.

`torch.nn.utils.parametrize` gives such a module a class of its own, which refuses to be pickled and which copies
share, so that removing a property from one takes it from all. Here a copy is rebuilt, with a class of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .names import describe, lists_of, written
from .records import KEY
from .recurrent import weights_of_threads
from .resetting import make_resettable


def make_copyable(module: nn.Module) -> None:
    """Let copy.deepcopy and pickle rebuild this parametrized module, and `.to` move it without computing a weight."""
    kind: Any = type(module)
    if "__deepcopy__" in vars(kind):  # torch's; one that the user wrote is inherited and stays
        del kind.__deepcopy__
    kind.__reduce_ex__ = _reduce
    kind.register_parameter = _refusing(kind.__bases__[0].register_parameter)
    make_resettable(kind)
    if isinstance(module, nn.RNNBase):
        kind._apply, kind._flat_weights = _move, weights_of_threads


def forget_computed_weights(module: nn.Module) -> None:
    """Make an RNN drop the parametrized weights of its last pass: they hold the graph, and cannot be copied."""
    if isinstance(module, nn.RNNBase) and (computed := lists_of(module)):
        for i, attribute in enumerate(module._flat_weights_names):
            if attribute in computed:
                module._flat_weights[i] = None
                module._flat_weight_refs[i] = _gone


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    forget_computed_weights(module)
    plain: Any = parametrize.type_before_parametrizations(module)
    kept = plain.__getstate__(module) if _has_own(plain, "__getstate__") else module.__dict__
    if not isinstance(kept, dict) or "_modules" not in kept:  # in a form that only __setstate__ of the class knows
        kept = module.__dict__
    return _blank, (plain,), {key: value for key, value in kept.items() if key != "_flat_weight_refs"}


def _has_own(kind: type, method: str) -> bool:
    """Whether the user wrote it, and neither torch nor Python."""
    return any(method in vars(each) for each in kind.__mro__ if not each.__module__.startswith(("torch.", "builtins")))


def _refusing(register: Callable[[nn.Module, str, nn.Parameter | None], None]) -> Callable[..., None]:
    """`register_parameter`, which `module.weight = Parameter` calls, with an error of its own for computed tensors."""

    def register_parameter(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if name.startswith("parametrizations."):  # which torch's parallelize_module does, to cut what has no such name
            raise ValueError(
                f"{describe(module, name.split('.')[1])} is computed by Trivialization(), and tensor parallelism of "
                f"torch cuts Parameters of the layer alone. Make the model again and constrain it with Riemannian(), "
                f"whose weight is one, or leave this layer out of the plan; fully_shard takes both."
            )
        if name in lists_of(module):
            raise ValueError(
                f"{describe(module, name)} is computed by a parametrization, and no Parameter can take its place. "
                f"Assign a tensor, {written(name, 'value.detach()')}, which moves it there, or unconstrain it first."
            )
        pruned = name.removesuffix("_orig")  # where torch.nn.utils.prune puts what it takes for a Parameter
        if type(param) is torch.Tensor and pruned in lists_of(module):
            raise ValueError(
                f"{describe(module, pruned)} is computed by a parametrization, and torch.nn.utils.prune needs a "
                f"Parameter. Unconstrain it first."
            )
        register(module, name, param)

    return register_parameter


def _move(module: nn.RNNBase, fn: Any, recurse: bool = True) -> Any:
    """`_apply` of an RNN, as for `.to`, which else computes every weight, if only memory that was never written."""
    names = module._flat_weights_names
    module._flat_weights_names = ["" if name in lists_of(module) else name for name in names]
    plain: Any = parametrize.type_before_parametrizations(module)
    try:
        plain._apply(module, fn, recurse)
    finally:
        module._flat_weights_names = names
    forget_computed_weights(module)
    return module


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An empty module that becomes a parametrized one of this kind when it is given its state."""
    blank: Any = type(kind.__name__, (kind,), {"__setstate__": _restore})
    return blank.__new__(blank)  # type: ignore[no-any-return]


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    lists = state["_modules"]["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    plain = {name: child for name, child in state["_modules"].items() if child is not lists}
    kind: Any = type(module) if _has_own(type(module), "__setstate__") else nn.Module
    kind.__setstate__(module, {**state, "_modules": plain})
    if isinstance(module, nn.RNNBase):
        module._flat_weight_refs = [_gone if w is None else weakref.ref(w) for w in module._flat_weights]
    for attribute, coordinates in lists.items():
        # a stand-in, for only torch can make the property
        module.register_parameter(attribute, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(module, attribute, nn.Identity(), unsafe=True)
        module.parametrizations[attribute] = coordinates  # type: ignore[operator]
    if KEY in module.__dict__:
        module.__dict__[KEY].modules = module._modules
    make_copyable(module)


_gone: weakref.ref[Any] = weakref.ref(set())  # a reference to nothing, which tells the RNN to look again
