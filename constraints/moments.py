"""What torch's optimizers keep of the gradients of a tensor, and how it follows a change of coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from manifolds import Manifold
from manifolds._points import inner
from manifolds.base import per_point
from manifolds.engine import engine

from .sharding import whole

FIRST = {
    "exp_avg": ("exp_avg_sq", "exp_inf", "max_exp_avg_sq"),
    "grad_avg": ("square_avg",),
    "momentum_buffer": ("square_avg",),
    "prev": (),
}
"""Means of gradients, or one gradient, and the second moments that they are divided by."""

ELEMENTWISE = {
    "acc_delta",
    "col_var",
    "exp_avg_sq",
    "exp_inf",
    "max_exp_avg_sq",
    "mu_product",
    "row_var",
    "square_avg",
    "step",
    "step_size",
    "sum",
    "variance",
}
"""Second moments, sizes of steps and counts, which stay as they are."""


def is_known(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether the step is torch's own, and all that is kept for the parameter is known here. That of LBFGS is not: it
    has one history for all parameters, under the first of them."""
    if isinstance(optimizer, LBFGS):
        return False
    step = getattr(getattr(optimizer, "inner", optimizer).step, "__module__", "")
    return step.startswith("torch.optim.") and set(optimizer.state.get(parameter, ())) <= FIRST.keys() | ELEMENTWISE


def drop(optimizer: Optimizer, parameter: Tensor) -> None:
    """Forget what is kept for the parameter; of LBFGS, which has one history for all parameters, everything."""
    optimizer.state.pop(parameter, None)
    if isinstance(optimizer, LBFGS):  # kept under the first of them
        optimizer.state.clear()


def changed(
    state: dict[str, Any], change: Callable[[Tensor], Tensor], manifold: Manifold
) -> list[tuple[Tensor, Tensor]]:
    """(what the state has, what it is after the change), for first moments.

    Second moments stay. A covector from far away is as long as the way, squared: no first moment gets longer, or the
    next step would be, and what was already long would come to be longer still. And where entries had no gradient so
    far, and are divided by next to nothing, it is cut: no entry gets a longer step than any had before.
    """
    pairs = []
    for key, divisors in FIRST.items():
        if not isinstance(kept := state.get(key), Tensor):
            continue
        old = whole(kept)
        new = change(old)
        new = new / _growth(new, old, manifold).abs().clamp_min(1)
        if present := [divisor for divisor in divisors if divisor in state]:
            # what is kept as "momentum_buffer" beside a second moment, by RMSprop, is divided by it already
            rms = _root(whole(state[present[0]]), present[0]) if key != "momentum_buffer" else torch.ones_like(old)
            new = _held_back(new, old, rms)
        pairs.append((kept, new))
    return pairs


def _root(divisor: Tensor, key: str) -> Tensor:
    """What is divided by, entry by entry, of the real and the imaginary part alike."""
    if divisor.is_complex():
        return torch.view_as_complex(_root(torch.view_as_real(divisor), key))
    return divisor if key == "exp_inf" else divisor.sqrt()


def _growth(new: Tensor, old: Tensor, manifold: Manifold) -> Tensor:
    """|new| / |old| of each point, shaped as the tensor; 1 where either is zero."""
    parts = []
    for (factor, after), (_, before) in zip(engine(manifold).split(new), engine(manifold).split(old), strict=True):
        now, then = (per_point(inner(t, t, factor.ndim), factor.ndim).sqrt() for t in (after, before))
        ratio = torch.where((now > 0) & (then > 0), now / then, 1.0)
        parts.append(ratio.expand(after.shape).to(new.dtype))
    return engine(manifold).join(parts, new.shape)


def _held_back(new: Tensor, old: Tensor, rms: Tensor) -> Tensor:
    """The new moment, cut where |new| / rms would be larger than the largest |old| / rms."""
    if new.is_complex():
        parts = (torch.view_as_real(t.resolve_conj()) for t in (new, old, rms))
        return torch.view_as_complex(_held_back(*parts))
    bound = torch.where(rms > 0, old.abs() / rms, 0).amax() * rms
    return torch.minimum(torch.maximum(new, -bound), bound)
