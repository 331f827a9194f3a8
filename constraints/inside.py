"""What only private functions of torch tell: whether a tensor or a call is inside of a transform, a trace or hooks.

Where a version of torch has none of that name, the answer is that of plain eager code.
"""

from __future__ import annotations

from typing import Any

import torch


def _private(path: str, otherwise: Any) -> Any:
    """The function torch._C.path, or one that always returns the same."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return (lambda *args: otherwise) if found is None else found


_level = _private("_functorch.maybe_current_level", None)
_is_traced = _private("_is_tracing", False)
_modes = _private("_len_torch_dispatch_stack", 0)
# torch 2.6 has none; a part of a pass that is checkpointed alone then raises CheckpointError
_saving = _private("_autograd._top_saved_tensors_default_hooks", None)


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
