"""An optimizer that stands in front of another one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adam, AdamW, Optimizer

from .checks import Group
from .hooked import hooked
from .loading import check_kind, named


class Proxy(Optimizer):
    """Its groups, state and defaults are those of `inner`, so that whatever reads or sets them means both."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        Optimizer.__setstate__(self, {})  # the hooks of torch, without parameters of its own

    @staticmethod
    def profile_hook_step(func: Any) -> Any:
        """See `hooked`."""
        return hooked(func)

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """Those of the optimizer."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the optimizer."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the optimizer."""
        return self.inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As that of the optimizer."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer, with the repr of each group's manifold."""
        saved: dict[str, Any] = self.inner.state_dict()
        return {**saved, "param_groups": [named(group) for group in saved["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As that of the optimizer; manifolds stay those of this one. Raises ValueError where their reprs differ, or
        where it is the state of an optimizer of another kind."""
        mine = [group["manifold"] for group in self.param_groups]
        check_kind(type(self.inner).__name__, state_dict["param_groups"], self.param_groups)
        self.inner.load_state_dict(state_dict)
        for group, manifold in zip(self.param_groups, mine, strict=True):
            group["manifold"] = manifold

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.inner = state["inner"]
        super().__setstate__(state)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def check_wrapped(optimizer: Any) -> None:
    """TypeError for what is no optimizer, ValueError for those that Retracted has nothing to do with."""
    if not isinstance(optimizer, Optimizer):
        what = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else f"a {type(optimizer).__name__}"
        raise TypeError(
            f"Retracted takes an optimizer, as in Retracted(torch.optim.AdamW(param_groups(model))); got {what}."
        )
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            f"{kind} looks for a step by values of the loss along it, which Retracted would bend. Write "
            f"RiemannianLBFGS(model)."
        )
    if kind == "ZeroRedundancyOptimizer":
        raise ValueError(
            f"{kind} gives each process an optimizer of its own for some parameters, which Retracted does not see. Cut "
            f"the model by fully_shard and take RiemannianAdam(model), or hold its weights by Trivialization()."
        )
    if getattr(optimizer, "keeps_manifolds", False):
        raise ValueError(f"{kind} keeps manifolds by itself; use it without Retracted.")


def unasked_decay(optimizer: Optimizer) -> float:
    """The weight decay of who asks for none; 0 where the optimizer names no such option."""
    option = inspect.signature(type(optimizer).__init__).parameters.get("weight_decay")
    return 0.0 if option is None else option.default


@contextmanager
def lent(parameters: Sequence[Tensor], values: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[None]:
    """These values and gradients in place of the parameters' own for a time."""
    own = [(p.data, p.grad) for p in parameters]
    try:
        for p, value, g in zip(parameters, values, gradients, strict=True):
            p.data, p.grad = value, g
        yield
        for p, value in zip(parameters, values, strict=True):
            if not p.is_set_to(value):  # an optimizer that writes p.data = ...
                value.copy_(p.data)
    finally:
        for p, (data, grad) in zip(parameters, own, strict=True):
            p.data, p.grad = data, grad


@contextmanager
def fused(optimizer: Optimizer) -> Iterator[None]:
    """torch's update in one pass for held tensors on CPU for a time, where the optimizer has one and nobody has said
    how: entry by entry it makes ten, and new memory for three."""
    groups = [
        group for group in optimizer.param_groups if type(optimizer) in (Adam, AdamW) and _may_fuse(optimizer, group)
    ]
    for group in groups:
        group["fused"] = True
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = None


def _may_fuse(optimizer: Optimizer, group: Group) -> bool:
    if group["manifold"] is None or group.get("fused", False) is not None or group.get("foreach") is not None:
        return False
    if group.get("capturable") or group.get("differentiable"):
        return False
    if any(isinstance(value, Tensor) for value in (group["lr"], *group["betas"])):
        return False
    steps = [optimizer.state.get(p, {}).get("step") for p in group["params"]]
    ready = all(step is None or (isinstance(step, Tensor) and step.dtype == torch.float32) for step in steps)
    return ready and all(p.is_cpu and p.is_floating_point() for p in group["params"])
