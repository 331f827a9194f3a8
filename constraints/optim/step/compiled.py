"""Steps within torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Step = Callable[..., Any]


def outside_of_graphs(step: Step) -> Step:
    """The step, which within torch.compile runs as it is: what it does depends on values, at each of which a graph
    would end."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def outside(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
        return step(optimizer, closure)  # not optimizer.step, whose hooks have been called

    @wraps(step)
    def either(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        return outside(self, closure) if torch.compiler.is_dynamo_compiling() else step(self, closure)

    return either
