"""The precision that geometry needs: that of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def exact_products(*devices: str) -> Iterator[None]:
    """Matrix products on these types of device in the full precision of their factors.

    Without autocast, and without the TF32 or bfloat16 that `torch.set_float32_matmul_precision` allows inside of
    float32: an orthogonality error of 1e-6 would become one of 1e-3 to 1e-1, and nothing would say so.
    """
    if torch.compiler.is_compiling():  # these are settings of the process, not of the graph
        yield
        return
    with ExitStack() as stack:
        for device in devices:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(_full_float32(device))
        yield


@contextmanager
def _full_float32(device: str) -> Iterator[None]:
    backend = getattr({"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device), "matmul", None)
    if backend is None or not hasattr(backend, "fp32_precision"):  # torch before 2.9
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    kept = backend.fp32_precision
    if kept in ("none", "ieee"):
        yield
        return
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = kept
