"""Moves (X, A) -> Y with derivatives of their own: what Cayley and the exponential share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._linalg import is_traced, without_autocast
from ._tiny import batch_last, in_order_of

Move = Callable[[Tensor, Tensor], Tensor]


def differentiable(
    plain: Move,
    forward: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    pull_x: Callable[..., Tensor],
    pull_a: Callable[..., Tensor],
    push_a: Callable[[Move, Tensor, Tensor, Tensor], Tensor],
) -> Move:
    """The move whose definition is `plain`, linear in X, computed by `forward`, as fast as it can be.

    forward(x, a) -> (y, *hints): the value, and what it leaves for the way back; hints are empty, or have the batch
    axes first. pull_x(a, grad, *hints) and pull_a(x, a, y, grad, *hints) are the gradients of first order; those of
    higher order come from `plain`. push_a(move, x, a, da) is the derivative along da, in terms of the move itself.
    """

    class Moved(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
            kept, a = torch.broadcast_tensors(x, a)
            y, *hints = forward(batch_last(kept), batch_last(a))
            return in_order_of(y, x), *hints

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs, *output)
            ctx.save_for_forward(*inputs)
            ctx.hints = len(output) - 1

        @staticmethod
        @without_autocast
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
            if grad is None:
                return None, None
            x, a, y, *hints = ctx.saved_tensors
            if torch.is_grad_enabled():  # a second derivative is that of the definition
                return torch.func.vjp(plain, x, a)[1](grad)  # type: ignore[no-any-return]
            grad = batch_last(grad)
            grad_x = in_order_of(pull_x(a, grad, *hints), x) if ctx.needs_input_grad[0] else None
            return grad_x, in_order_of(pull_a(x, a, y, grad, *hints), a) if ctx.needs_input_grad[1] else None

        @staticmethod
        def jvp(ctx: Any, dx: Tensor | None, da: Tensor | None) -> tuple[Tensor | None, ...]:
            x, a = ctx.saved_tensors
            along_x = None if dx is None else move(dx, a)
            along_a = None if da is None else push_a(move, x, a, da)
            both = [d for d in (along_x, along_a) if d is not None]
            return sum(both[1:], both[0]), *(None,) * ctx.hints

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Tensor, a: Tensor) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
            x, a = (
                t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
                for t, d in zip((x, a), in_dims, strict=True)
            )
            outputs = Moved.apply(x, a)  # type: ignore[no-untyped-call]
            return outputs, (0, *(0 if t.numel() else None for t in outputs[1:]))

    def move(x: Tensor, a: Tensor) -> Tensor:
        if is_traced():
            return plain(x, a)
        return Moved.apply(x, a)[0]  # type: ignore[no-any-return, no-untyped-call]

    return move
