"""Moves (X, A) -> Y with derivatives of their own: what Cayley and the exponential share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .linalg import is_traced
from .precision import without_autocast
from .tiny import batch_last, in_order_of
from .transforms import in_forward_mode, is_recorded, is_transformed

Move = Callable[[Tensor, Tensor], Tensor]


def differentiable(
    plain: Move,
    forward: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    pull_x: Callable[..., Tensor],
    pull_a: Callable[..., Tensor],
) -> Move:
    """The move whose definition is `plain`, linear in X, computed by `forward`, as fast as it can be.

    forward(x, a) -> (y, *hints): the value, and what it leaves for the way back; hints are empty, or have the batch
    axes first. pull_x(a, grad, *hints) and pull_a(x, a, y, grad, *hints) are the gradients of first order, where x and
    a have the shape of y; those of higher order, and all forward ones, come from `plain`.
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

        @staticmethod
        @without_autocast
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
            if grad is None:
                return None, None
            x, a, y, *hints = ctx.saved_tensors
            # a second derivative is that of the definition; so is that for many cotangents at once
            if torch.is_grad_enabled() or in_forward_mode() or is_transformed(grad):
                return torch.func.vjp(plain, x, a)[1](grad)  # type: ignore[no-any-return]
            grad, wide = batch_last(grad), torch.broadcast_tensors(x, a)
            return (
                _shaped(pull_x(wide[1], grad, *hints), x) if ctx.needs_input_grad[0] else None,
                _shaped(pull_a(*wide, y, grad, *hints), a) if ctx.needs_input_grad[1] else None,
            )

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Tensor, a: Tensor) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
            x, a = (
                t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
                for t, d in zip((x, a), in_dims, strict=True)
            )
            ndim = max(x.dim(), a.dim())
            x, a = (t.reshape(len(t), *(1,) * (ndim - t.dim()), *t.shape[1:]) for t in (x, a))
            outputs = Moved.apply(x, a)  # type: ignore[no-untyped-call]
            return outputs, (0, *(0 if t.numel() else None for t in outputs[1:]))

    def move(x: Tensor, a: Tensor) -> Tensor:
        if is_traced() or in_forward_mode():
            return plain(x, a)
        if not (is_recorded(x) or is_recorded(a)):
            return Moved.forward(x, a)[0]  # apply reads the signature of its forward every time
        return Moved.apply(x, a)[0]  # type: ignore[no-any-return, no-untyped-call]

    return move


def _shaped(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of a tensor that was broadcast, in the shape and the order of memory of that tensor."""
    return in_order_of(grad.sum_to_size(like.shape), like)
