"""What only private functions of torch tell: whether a tensor or a call is inside of a transform, a trace or hooks.

Where a version of torch has none of that name, the answer is that of plain eager code.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils import checkpoint


def _private(path: str, otherwise: Any) -> Any:
    """The function torch._C.path, or one that always returns the same."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return (lambda *args: otherwise) if found is None else found


_level = _private("_functorch.maybe_current_level", None)
_is_traced = _private("_is_tracing", False)
_modes = _private("_len_torch_dispatch_stack", 0)


def _recomputed(_: bool) -> int | None:
    """The call of torch.utils.checkpoint that this one is within, by its frame; None outside of all."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != checkpoint.__file__:
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else id(frame)


# torch 2.6 does not tell the hooks
_saving: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", _recomputed)


def transform_level() -> int | None:
    """How deep this call is in transforms of torch.func, as grad and vmap; None outside of all."""
    level: int | None = _level()
    return level


def is_traced() -> bool:
    """Whether this call is recorded by torch.jit.trace, or seen by a dispatch mode as that of fake tensors."""
    return bool(_is_traced()) or _modes() > 0


def saving_hooks() -> Any:
    """The hooks on tensors saved for backward, as those of a region that is recomputed; None outside."""
    return _saving(False)
