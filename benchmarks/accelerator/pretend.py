"""An accelerator played by a CPU: the same branches are taken, and a call that would wait for it raises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manifolds.kernels.linalg import may_wait


def _may_wait(x: torch.Tensor) -> bool:
    if Waits.inside:
        raise RuntimeError("a value may be waited for")
    return may_wait(x)


ANSWERS = {
    "on_accelerator": lambda x: True,
    "may_look": lambda x: False,
    "may_wait": _may_wait,
    "can_look": lambda device: False,
    "is_many_tiny": lambda shape, on_cpu: False,  # an order of memory that only a processor has
}
WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
FACTORIZES = ("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_pinv", "linalg_matrix_exp")
"""What torch asks a device about before it returns, of values of its own."""
CANNOT_BE_CAPTURED = ("cholesky_solve", "_cholesky_solve_helper")
"""What no CUDA graph holds, of a batch."""


@contextmanager
def pretended() -> Iterator[None]:
    """Values are not looked at, and nothing is factorized but by Cholesky."""
    with ExitStack() as stack:
        for path, module in list(sys.modules.items()):
            if path.partition(".")[0] in ("manifolds", "constraints"):
                for name in ANSWERS.keys() & vars(module).keys():
                    stack.enter_context(mock.patch.object(module, name, ANSWERS[name]))
        yield


class Waits(TorchDispatchMode):
    """Raises where an accelerator would have to be waited for, and where it might be, see `may_wait`."""

    inside = 0

    def __enter__(self) -> Waits:
        Waits.inside += 1
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: object) -> None:
        Waits.inside -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name in FACTORIZES or (name in WAITS and not all(_is_host(a) for a in args if isinstance(a, torch.Tensor))):
            raise RuntimeError(f"{func} waits for the device")
        if name in CANNOT_BE_CAPTURED:
            raise RuntimeError(f"{func} cannot be captured in a CUDA graph")
        return func(*args, **(kwargs or {}))


def _is_host(a: torch.Tensor) -> bool:
    """Counters live on the host on an accelerator too: one number, in float32 or float64."""
    return a.dim() == 0


@contextmanager
def without_waiting_on_cuda() -> Iterator[None]:
    """torch's own: a call that synchronizes raises."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
