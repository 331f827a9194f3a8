"""A Parameter that gets other memory, and stays the same object for optimizers, ties and references."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def give(parameter: nn.Parameter, value: Tensor) -> None:
    """Let value be the memory of the Parameter, without a gradient. For autograd it is a write: a backward pass of
    before, which would take the new values for the old ones, is an error of torch."""
    parameter.data, parameter.grad = value, None
    if not parameter.is_inference():
        torch.autograd.graph.increment_version(parameter)
