"""A step with its hooks."""

from __future__ import annotations

from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .compiled import Step


def hooked(step: Step) -> Step:
    """`Optimizer.profile_hook_step`, without a record for a profiler where none runs: that is a third of the time of
    a step of one small matrix."""
    recorded: Step = Optimizer.profile_hook_step(step)

    @wraps(step)
    def either(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or _is_profiled():
            return recorded(self, *args, **kwargs)
        given: tuple[Any, ...] = (self, *args)
        for before in chain(_global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()):
            changed = before(self, given, kwargs)
            if isinstance(changed, tuple) and len(changed) == 2:
                given, kwargs = changed
            elif changed is not None:
                raise RuntimeError(f"a hook before {step} returns None or (args, kwargs); got {type(changed)}.")
        result = step(*given, **kwargs)  # which looks for the compiler too: this frame may have been left to Python
        for after in chain(self._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
            after(self, given, kwargs)
        return result

    return either


def _is_profiled() -> bool:
    """Whether a profiler runs, here or in all threads."""
    return bool(profiler._is_profiler_enabled or torch._C._autograd._profiler_enabled())
