"""What torch.func, forward mode and graphs make of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

functorch = torch._C._functorch


def in_forward_mode() -> bool:
    """Whether forward derivatives are taken. torch loses the derivatives of what a Function gives as its `jvp`, and
    says nothing, so none here has one: torch derives the formulas themselves."""
    return torch.autograd.forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether a graph is being recorded, or tensors without values pass: there is nothing to decide by."""
    return torch.compiler.is_dynamo_compiling() or torch._C._len_torch_dispatch_stack() > 0


def is_transformed(x: Tensor) -> bool:
    """Whether x is many tensors seen as one, as by vmap, where nothing can be written into given memory; True in what
    is compiled, which cannot ask, nor write."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x)


def is_batched(x: Tensor) -> bool:
    """Whether x has a batch axis that it does not show, as in vmap; False in what is compiled, which cannot ask."""
    if torch.compiler.is_dynamo_compiling():
        return False
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return functorch.is_legacy_batchedtensor(x)


def whole(x: Tensor) -> Tensor:
    """The values of all that transforms see as one tensor: they may be looked at, within vmap too."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def is_recorded(x: Tensor) -> bool:
    """Whether a derivative by x may be taken: in what is compiled too, where transforms cannot be asked for."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return (x.requires_grad and torch.is_grad_enabled()) or in_forward_mode() or is_transformed(x)
