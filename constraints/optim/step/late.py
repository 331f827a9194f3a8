"""Numbers of an accelerator, read two steps later, when they are there: nothing waits for them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

LAG = 2
"""Steps between a number and its use: a device that is behind by a whole step has come to it."""


class Late:
    """What `put` was given LAG calls ago."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._free = [torch.empty((), pin_memory=self._cuda) for _ in range(LAG + 1)]
        self._sent: deque[tuple[Tensor, Any]] = deque()

    def put(self, value: Tensor) -> None:
        """Send one number on its way to the host."""
        host, event = self._free.pop(), None
        host.copy_(value, non_blocking=True)
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        self._sent.append((host, event))

    def take(self) -> float | None:
        """The number put LAG calls ago; None if there were not so many."""
        if len(self._sent) < LAG:
            return None
        host, event = self._sent.popleft()
        if event is not None:
            event.synchronize()
        self._free.append(host)
        return float(host.item())
