"""The precision that geometry needs: that of its tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

EXACT = ("none", "ieee")
"""Values of fp32_precision."""

_AS_IT_IS = nullcontext()


def exact_products(*devices: str) -> AbstractContextManager[None]:
    """Matrix products on these types of device in the full precision of their factors.

    Without autocast, and without the TF32 or bfloat16 that `torch.set_float32_matmul_precision` allows inside of
    float32: an orthogonality error of 1e-6 would become one of 1e-3 to 1e-1, and nothing would say so.
    """
    if torch.compiler.is_compiling():  # other settings of the process are not of the graph
        for device in devices:
            if torch.is_autocast_enabled(device):
                return torch.autocast(device, enabled=False)
        return _AS_IT_IS
    if all(map(_is_exact, devices)):
        return _AS_IT_IS
    return _exact(devices)


def _is_exact(device: str) -> bool:
    backend = _backend(device)  # only of devices that have autocast
    return backend is not None and backend.fp32_precision in EXACT and not torch.is_autocast_enabled(device)


@contextmanager
def _exact(devices: tuple[str, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for device in devices:
            if _is_autocast(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(_full_float32(device))
        yield


@contextmanager
def _full_float32(device: str) -> Iterator[None]:
    backend = _backend(device)
    if backend is None:
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    kept = backend.fp32_precision
    if kept in EXACT:
        yield
        return
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = kept


def _is_autocast(device: str) -> bool:
    return _has_autocast(device) and torch.is_autocast_enabled(device)


_has_autocast = functools.cache(torch.amp.is_autocast_available)


@functools.cache
def _backend(device: str) -> Any:
    """The settings of products on this device; None where there are none of its own, as before torch 2.9."""
    backend = getattr({"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device), "matmul", None)
    return backend if hasattr(backend, "fp32_precision") else None
