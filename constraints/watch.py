"""The watch over optimizers: none moves a held Parameter as if it were free, or from off its manifold."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from manifolds import Manifold
from manifolds.kernels.precision import exact_products

from .records import Records, constrained, generation, hidden, lost, when_first
from .sharding import whole
from .values import at_least_float32, is_near, near
from .ways import has_nearest, point_code, which_off

LOOK_EVERY = 100  # steps: what a Gram matrix costs then is nothing
OURS = {
    "AdamW": "RiemannianAdamW",
    "LBFGS": "RiemannianLBFGS",
    "Muon": "RiemannianMuon",
    "SGD": "RiemannianSGD",
    "SparseAdam": "RiemannianSGD",  # which takes sparse gradients
}
"""What to use for an optimizer of torch; for all others it is RiemannianAdam."""
UNWRAPPED = {"LBFGS", "Muon", "SparseAdam", "ZeroRedundancyOptimizer"}
"""Those that cannot take the groups of a whole model, or that `Retracted` cannot wrap."""


@dataclass
class Looked:
    """What an optimizer held when it was last looked at, and how many steps it took since."""

    state: tuple[int, ...]
    held: list[tuple[Records, str, nn.Parameter]]
    gone: list[tuple[Tensor, Manifold, Manifold | None]]  # held once; the manifold of the group, and that of now
    steps: int = 0


_looked: weakref.WeakKeyDictionary[Optimizer, Looked] = weakref.WeakKeyDictionary()
_guided: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # whose steps another one takes back to the manifold


@contextmanager
def guided(optimizer: Optimizer) -> Iterator[None]:
    """Let the optimizer step for this time, for what it does to held Parameters is taken back to their manifolds."""
    _guided.add(optimizer)
    try:
        yield
    finally:
        _guided.discard(optimizer)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """ValueError if a constrained parameter is about to be moved as if it were free, or from off its manifold."""
    if torch.compiler.is_dynamo_compiling():  # looking is no part of the graph
        torch.compiler.disable(_before_step)(optimizer, args, kwargs)
        return
    if optimizer in _guided:
        return
    looked = look(optimizer)
    for parameter, manifold, present in looked.gone:
        if parameter.grad is not None:
            raise _outdated(optimizer, parameter, manifold, present)
    for records, attribute, p in looked.held:
        if attribute not in records.parameters:
            raise lost(records, attribute)
        if records.parameters[attribute] is not p:
            raise ValueError(
                f"{records.names[attribute]} of shape {tuple(p.shape)} is another Parameter now than the one that this "
                f"{type(optimizer).__name__} holds, which nothing uses. Write into the Parameter instead, by "
                f".copy_(value) under torch.no_grad(), or make a new optimizer."
            )
        captured = p.device.type == "cuda" and torch.cuda.is_current_stream_capturing()  # values cannot be looked at
        # a write to .data leaves the version as it is; of a table, steps look at the rows that they move
        again = looked.steps % LOOK_EVERY == 0 and not captured and not (p.grad is not None and p.grad.is_sparse)
        if again or records.versions.get(attribute) != p._version:
            _check_point(records, attribute, p)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_dynamo_compiling():
        torch.compiler.disable(_after_step)(optimizer, args, kwargs)
        return
    if optimizer in _guided:
        return
    looked = look(optimizer)
    looked.steps += 1
    for records, attribute, p in looked.held:
        records.versions[attribute] = p._version


def look(optimizer: Optimizer) -> Looked:
    """The constrained parameters of the optimizer, found once; ValueError if it is blind to their manifolds."""
    state = (generation(), *(len(group["params"]) for group in optimizer.param_groups))
    looked = _looked.get(optimizer)
    if looked is not None and looked.state == state:
        return looked
    blind = not getattr(optimizer, "keeps_manifolds", False)  # torch keeps a "manifold" in groups and never looks at it
    known, computed = constrained(), hidden()
    before = set() if looked is None else {id(p) for _, _, p in looked.held} | {id(p) for p, _, _ in looked.gone}
    held: list[tuple[Records, str, nn.Parameter]] = []
    gone: list[tuple[Tensor, Manifold, Manifold | None]] = []
    for group in optimizer.param_groups:
        manifold = group.get("manifold")
        for p in group["params"]:
            if id(p) in computed:
                raise lost(*computed[id(p)])
            if id(p) not in known:
                if manifold is not None and id(p) in before:
                    gone.append((p, manifold, None))
            else:
                records, attribute = known[id(p)]
                if not blind and "manifold" in group and manifold is None:
                    raise ValueError(
                        f"{records.names[attribute]} of shape {tuple(p.shape)} is constrained to "
                        f"{records.manifolds[attribute]}, but this {type(optimizer).__name__} was made before it was. "
                        f"Make it again after constrain: {_made(optimizer)}."
                    )
                if blind or manifold is None:
                    raise _blind(optimizer, p, records, attribute)
                present = records.manifolds[attribute]
                if present == manifold:
                    held.append((records, attribute, p))
                else:
                    gone.append((p, manifold, present))
    looked = _looked[optimizer] = Looked(state, held, gone)
    return looked


def _made(optimizer: Optimizer) -> str:
    """Code that makes it of a model."""
    inner = getattr(optimizer, "inner", None)
    name = type(optimizer).__name__
    return f"{name}(model, ...)" if inner is None else f"{name}({type(inner).__name__}(param_groups(model), ...))"


def _blind(optimizer: Optimizer, p: Tensor, records: Records, attribute: str) -> ValueError:
    kind = type(optimizer).__name__
    ways = f"constraints.optim.{OURS.get(kind, 'RiemannianAdam')}(model)"
    from .optim.step.frames import sees_other_lengths  # which knows of this watch

    if kind not in UNWRAPPED and not sees_other_lengths(type(optimizer), records.manifolds[attribute]):
        ways += f" or Retracted({kind}(param_groups(model)))"
    return ValueError(
        f"{records.names[attribute]} of shape {tuple(p.shape)} is held on {records.manifolds[attribute]} by "
        f"Riemannian(), and a step of {kind} would leave the manifold. Use {ways}, or constrain it with "
        f"Trivialization(), which any optimizer can train. A class of your own that moves each group on its "
        f'"manifold" says so by keeps_manifolds = True, and takes param_groups(model).'
    )


def _outdated(optimizer: Optimizer, p: Tensor, manifold: Manifold, present: Manifold | None) -> ValueError:
    now = "is not constrained any more" if present is None else f"is now constrained to {present}"
    return ValueError(
        f"a parameter of shape {tuple(p.shape)} {now}, but this {type(optimizer).__name__} was made when it was held "
        f"on {manifold}, and would move it there. Make a new optimizer for the model as it is now; to keep a free "
        f'tensor on a manifold, pass it in a group with that "manifold".'
    )


@torch.no_grad()
def _check_point(records: Records, attribute: str, p: nn.Parameter) -> None:
    manifold = records.manifolds[attribute]
    x = at_least_float32(whole(p))
    with exact_products(p.device.type):
        on = is_near(manifold, x, p.dtype)
    if not on:
        raise off(records.names[attribute], p, manifold)


def off(name: str, p: Tensor, manifold: Manifold) -> ValueError:
    """The error for a parameter whose value was changed to one that is not on its manifold."""
    again = "takes the nearest point" if has_nearest(manifold, p) else "does so with init='haar'"
    return ValueError(
        f"{name} of shape {tuple(p.shape)} was changed to a value that is not on "
        f"{manifold}{which_off(manifold, p, near(p.dtype))}, where it is held. Write a point into it, by "
        f".copy_({point_code(manifold, p)}) under torch.no_grad(); in a module, the same constrain once more {again}."
    )


when_first(lambda: register_optimizer_step_pre_hook(_before_step))
when_first(lambda: register_optimizer_step_post_hook(_after_step))
