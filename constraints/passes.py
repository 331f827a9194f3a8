"""The forward passes of a module with trivialized tensors, each of which computes a weight once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .copying import forget_computed_weights
from .memo import Memo
from .names import lists_of
from .recurrent import begin_pass, end_pass, take_weights


def watch(owner: nn.Module) -> None:
    """Open the memos of the owner for the time of each of its forward passes."""
    if _open not in owner._forward_pre_hooks.values():
        owner.register_forward_pre_hook(_open, prepend=True)
        owner.register_forward_hook(_close, always_call=True)


def unwatch(owner: nn.Module) -> None:
    """Undo `watch` where nothing is computed any more."""
    if not any(True for _ in _memos(owner)):
        for hooks, hook in ((owner._forward_pre_hooks, _open), (owner._forward_hooks, _close)):
            for key in [key for key, each in hooks.items() if each is hook]:
                del hooks[key]


def _memos(owner: nn.Module) -> Iterator[Memo]:
    for each in lists_of(owner).values():
        memo = getattr(each[0], "memo", None)  # type: ignore[index]
        if isinstance(memo, Memo):
            yield memo


def _open(owner: nn.Module, args: Any) -> None:
    if not torch.compiler.is_dynamo_compiling():
        for memo in _memos(owner):
            memo.open()
        begin_pass(owner)
        take_weights(owner)


def _close(owner: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_dynamo_compiling():
        for memo in _memos(owner):
            memo.close()
        end_pass(owner)
        forget_computed_weights(owner)
