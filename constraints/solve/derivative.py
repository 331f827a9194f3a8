"""Derivatives by autograd, called many times on small graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def derivative(
    outputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool = False,
    twice: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradient of the sum of <weight, output> by each input, None where no output depends on it.

    keep: the graph, for another call; twice: also one of the gradient. As `torch.autograd.grad`, whose look at its
    arguments takes as long as a small f, and with weights imports sympy first, for half a second or more: on CPU what
    it calls in the end is called.
    """
    if (run := _engine()) is not None and all(map(_is_plain, outputs)):
        found: tuple[Tensor | None, ...] = run(
            tuple(outputs),
            tuple(weights),
            keep or twice,
            twice,
            tuple(inputs),
            allow_unreachable=True,
            accumulate_grad=False,
        )
        return found
    return torch.autograd.grad(
        outputs, inputs, weights, retain_graph=keep or twice, create_graph=twice, allow_unused=True
    )


def _is_plain(t: Tensor) -> bool:
    return type(t) is Tensor and t.is_cpu


@functools.cache
def _engine() -> Callable[..., Any] | None:
    """`run_backward` of torch's engine; None in a torch where it is not what it was."""
    engine = getattr(getattr(torch.autograd, "Variable", None), "_execution_engine", None)
    run: Callable[..., Any] | None = getattr(engine, "run_backward", None)
    if run is None:
        return None
    with torch.enable_grad():
        x, unused = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
        square = x * x
    try:
        first = run(
            (square,), (torch.tensor(0.5),), True, True, (x, unused), allow_unreachable=True, accumulate_grad=False
        )
        second = run(
            (first[0],), (torch.tensor(1.0),), False, False, (x,), allow_unreachable=True, accumulate_grad=False
        )
        right = first[1] is None and x.grad is None and (first[0].item(), second[0].item()) == (3.0, 1.0)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return None
    return run if right else None
