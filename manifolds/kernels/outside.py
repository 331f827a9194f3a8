"""What runs as it is within torch.compile; imported there alone, for it imports the compiler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

R = TypeVar("R")
WHY = (
    "float32 products may be done in TF32 or bfloat16 here, which would leave a manifold by 1e-3, and a graph cannot "
    "switch that off: call torch.set_float32_matmul_precision('highest') before, or do without a whole graph"
)
# torch says it where a whole graph is asked for, from 2.7 on
_reason: dict[str, Any] = {"reason": WHY} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}


def _run(function: Callable[..., R], /, *args: Any, **options: Any) -> R:
    return function(*args, **options)


run: Callable[..., Any] = torch.compiler.disable(_run, **_reason)
"""function(*args, **options), at which a graph ends."""
