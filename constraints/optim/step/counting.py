"""The number of a step: on the host, or on the device where replays of a graph count."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .limits import being_captured, can_look

Counter = Float[Tensor, ""]


def counter(steps: float, device: torch.device, capturable: bool) -> Counter:
    """So many steps."""
    return torch.full((), steps, dtype=torch.float32, device=device if capturable else "cpu")


def count(steps: Counter, device: torch.device, capturable: bool) -> float | Tensor:
    """One more of them, in place; a number, or the tensor on the device if capturable."""
    if not (can_look(device) or capturable) and being_captured(device):
        raise RuntimeError(
            "a step that is captured in a CUDA graph counts its steps on the device. Pass capturable=True."
        )
    if capturable:
        steps += 1
        return steps
    step: float = steps.item() + 1
    steps.fill_(step)
    return step
