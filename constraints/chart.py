"""The base of a trivialization moves to the weight: by itself where coordinates get long, or when it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from manifolds.kernels.precision import exact_products

from .moments import changed, drop, is_known
from .names import read, written
from .sharding import is_sharded, put, whole
from .spoiled import is_spoiled
from .values import may_look

Momentum = Literal["carried", "reset", "no optimizer"]

BLIND_EVERY = 16
"""Steps from one move of the base to the next on accelerators, which are not asked how long coordinates are."""


def groups_of(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each Parameter that the optimizer holds, by its id."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def follow(coordinates: Any, trainers: Sequence[Optimizer]) -> None:
    """Move the base after a step of one of the optimizers that hold the coordinates, where these are long; on
    accelerators every so many steps.

    So it is where they are sharded, for they are gathered to be looked at: all processes see the same.

    Nothing is done for an optimizer whose state is not known here: the base stays, as its state may refer to it. Nor
    where the weight has no value, which the next use of it says, or while a graph of an accelerator is captured.
    """
    original = coordinates.original.detach()
    looks = may_look(original) or any(isinstance(each, LBFGS) for each in trainers)
    if not (type(original) is Tensor or is_sharded(original)):
        return
    if not (looks or coordinates.steps % BLIND_EVERY == 0):
        return
    looks = looks or (is_sharded(original) and original.device.type == "cpu")
    if not all(isinstance(each, LBFGS) or is_known(each, coordinates.original) for each in trainers):
        return
    if not looks and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return
    try:
        if not looks or _is_long(coordinates):
            _change(coordinates, trainers)
    except ValueError:
        return


def move_base(coordinates: Any, trainers: Sequence[Optimizer]) -> Momentum:
    """Move the base to the weight, and carry or drop what the optimizers that hold the coordinates keep; says which.
    NaN in it is dropped.

    Raises ValueError, before anything moves, where the weight has NaN or infinite entries.
    """
    original = coordinates.original
    moves = bool(whole(original).any())
    if moves:
        coordinates.target()
    spoiled = [each for each in trainers if is_spoiled(each, original)]
    for each in spoiled:
        drop(each, original)
    done: Momentum = _change(coordinates, trainers) if moves else "carried"
    return "reset" if spoiled else done


@torch.no_grad()
def _is_long(coordinates: Any) -> bool:
    """Whether the coordinates are long. What is in `original` besides coordinates is taken out where it is."""
    held, original = coordinates[0], whole(coordinates.original)
    with exact_products(original.device.type):
        if not held.engine.is_long(base := held.base, original):
            return False
        c = held.engine.coordinates(base, original)
        if held.engine.is_long(base, c):
            return True
    put(coordinates.original, c)
    return False


@torch.no_grad()
def _change(coordinates: Any, optimizers: Sequence[Optimizer]) -> Momentum:
    """The change of chart, without waiting for values: all is computed before anything is written."""
    held, parameter = coordinates[0], coordinates.original
    base, manifold, original = held.base, held.manifold, whole(parameter)
    known = all(is_known(each, parameter) for each in optimizers)
    pairs: list[tuple[Tensor, Tensor]] = []
    with exact_products(original.device.type):
        point = held.engine.polish(held.exact(original))
        c = held.engine.coordinates(base, original.to(point.dtype))

        def change(m: Tensor) -> Tensor:
            there: Tensor = held.engine.recenter(base, point, c, m.to(c.dtype))
            return there.to(m.dtype)

        try:
            if known:
                for each in optimizers:
                    pairs += changed(each.state.get(parameter, {}), change, manifold)
            if parameter.grad is not None:
                pairs.append((parameter.grad, change(whole(parameter.grad))))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"the base of {held.name}, shape {tuple(base.shape)}, cannot move to the weight with the momentum of "
                f"its optimizer: a factorization fails, so far away it is, or so near the edge of {manifold}. Train "
                f"with smaller steps; or assign the weight to itself, "
                f"{written(held.attribute, read(held.attribute) + '.detach()')}, which drops that momentum."
            ) from error
    fine = point.isfinite().all()  # no base is made of what is not; NaN stays in the coordinates, to be seen
    left = torch.where(fine, 0, original)
    for old, new in pairs:
        put(old, new, fine)
    coordinates.set_point(torch.where(fine, point, base))
    put(parameter, left)
    if not known:
        for each in optimizers:
            drop(each, parameter)
    return ("carried" if known else "reset") if optimizers else "no optimizer"
