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
    "exp_avg": ("max_exp_avg_sq", "exp_avg_sq", "exp_inf"),
    "grad_avg": ("square_avg",),
    "momentum_buffer": ("square_avg",),
    "prev": (),
}
"""Means of gradients, or one gradient, and the second moments that they are divided by."""

FADES = ("exp_avg_sq", "exp_inf", "square_avg")
"""What steps are divided by, entry by entry, and what fades: means of squares, the largest absolute value."""

ELEMENTWISE = {
    *FADES,
    "acc_delta",
    "col_var",
    "max_exp_avg_sq",
    "mu_product",
    "row_var",
    "step",
    "step_size",
    "sum",
    "variance",
}
"""What does not turn with the coordinates: second moments, sizes of steps and counts."""


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
    """(what the state has, what it is after the change), for first and second moments.

    Directions of entries mix, so that none may be divided by next to nothing for its own gradients have been small: of
    second moments that fade, those below the median of their point become that median, the others stay. (Where they all
    stay, Adam at a rate that stays leaves an optimum that it had reached, by the directions of those entries. A median,
    for it does not follow one outlier, nor grow from move to move.) Those that only grow, of AMSGrad and Adagrad, stay.

    A covector from far away is as long as the way, squared: no first moment gets longer, or the next step would be, and
    what was already long would come to be longer still. And where entries had no gradient so far, and are divided by
    next to nothing, it is cut: no entry gets a longer step than any of the tensor had before, but for centered RMSprop,
    where the mean is a part of what it is divided by.
    """
    keys = ("max_exp_avg_sq",) if "max_exp_avg_sq" in state else FADES
    seconds = {key: whole(state[key]) for key in keys if isinstance(state.get(key), Tensor)}
    raised = {key: _raised(t, manifold) if key in FADES else t for key, t in seconds.items()}
    pairs = [(state[key], t) for key, t in raised.items() if key in FADES]
    for key, divisors in FIRST.items():
        if not isinstance(kept := state.get(key), Tensor):
            continue
        old = whole(kept)
        new = change(old)
        new = new / _growth(new, old, manifold).abs().clamp_min(1)
        if present := [divisor for divisor in divisors if divisor in seconds]:
            # what is kept as "momentum_buffer" beside a second moment, by RMSprop, is divided by it already
            before = after = torch.ones_like(old)
            if key != "momentum_buffer":
                before, after = (_root(t[present[0]], present[0]) for t in (seconds, raised))
            new = _held_back(new, old, before, after)
        pairs.append((kept, new))
    return pairs


def _raised(second: Tensor, manifold: Manifold) -> Tensor:
    """The second moments, those below the median of their point that median; of real and imaginary parts alike. Entries
    of flat sets never turn, and stay."""
    parts = []
    for factor, part in engine(manifold).split(second):
        if engine(factor).flat:
            parts.append(part)
            continue
        real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part[..., None]
        median = _median(real.flatten(-factor.ndim - 1))
        raised = torch.maximum(real, per_point(median, factor.ndim + 1))
        parts.append(torch.view_as_complex(raised) if part.is_complex() else raised[..., 0])
    return engine(manifold).join(parts, second.shape)


def _median(values: Tensor) -> Tensor:
    """The lower median of each row."""
    middle = (values.shape[-1] - 1) // 2
    if values.is_cpu:
        return values.kthvalue(middle + 1).values
    return values.sort().values[..., middle]  # `kthvalue` and `median` are not deterministic on accelerators


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


def _held_back(new: Tensor, old: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The new moment, cut where |new| / after would be larger than the largest |old| / before, of roots of seconds."""
    if new.is_complex():
        parts = (torch.view_as_real(t.resolve_conj()) for t in (new, old, before, after))
        return torch.view_as_complex(_held_back(*parts))
    bound = torch.where(before > 0, old.abs() / before, 0).amax() * after
    return torch.minimum(torch.maximum(new, -bound), bound)
