"""Sparse gradients of tables, as `nn.Embedding(sparse=True)` has them: no map has a derivative for that layout."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class Dense(Function):
    """x -> x, whose gradient arrives dense."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> Tensor:
        return g.to_dense() if g.is_sparse else g

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)
