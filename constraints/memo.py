"""A computed weight, kept for the time of one forward pass."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifolds.kernels.transforms import is_transformed

from .inside import saving_hooks, transform_level
from .sharding import is_sharded
from .values import Checksum, checksum, may_look


class Memo:
    """The weight within one forward pass of its module, so that modules that read it often compute it once.

    It serves reads in the context that the pass began in: one under no_grad, in another thread, within a transform of
    torch.func or in a region that is recomputed needs a tensor of its own. And it serves them as long as nothing was
    written to what the weight is made of, for a pass may never end: torch calls no hook after KeyboardInterrupt.
    A copy of a memo is empty.
    """

    def __init__(self) -> None:
        self._running: Pass | None = None
        self._handed: Handed | None = None

    def open(self) -> None:
        """A pass begins."""
        self._running = Pass()

    def close(self) -> None:
        """The pass is over, or the weight has another value now."""
        self._running = None

    def read(self, original: Tensor, compute: Callable[[Tensor], Tensor], *rest: Tensor) -> Tensor:
        """compute(original), or what it was before in this pass; the weight is made of original and the rest."""
        running = self._running
        if running is None or running.context != _context():
            weight = compute(original)
            self._handed = Handed(weight) if transform_level() is None else None
            return weight
        made_of = (original, *rest)
        kept = running.weight_of(made_of)
        return running.keep(compute(original), made_of) if kept is None else kept

    def was_changed(self) -> bool:
        """Whether the weight read last was changed in place since, which nothing would come of. Says so once."""
        if self._handed is None or not self._handed.was_changed():
            return False
        self._handed = None
        return True

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


class Handed:
    """The last weight that was read outside of a pass, which whoever has it may change in place."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version = weight.detach(), _version(weight)
        self._sum = self._look()

    def was_changed(self) -> bool:
        """Whether it has another version, or, once and only on CPU, another sum: writes to `.data` have no version."""
        if _version(self._weight) != self._version:
            return True
        first, now = self._sum, self._look()
        if first is None or now is None or first.order != now.order:
            return False
        self._sum = None
        return first.total != now.total

    def _look(self) -> Checksum | None:
        return checksum(self._weight) if may_look(self._weight) else None


class Pass:
    """One forward pass: the context that it began in, and the weight once it is computed."""

    def __init__(self) -> None:
        self.context = _context()
        self._weight: Tensor | None = None
        self._made_of: tuple[Tensor, ...] = ()
        self._states: list[Any] = []

    def weight_of(self, made_of: tuple[Tensor, ...]) -> Tensor | None:
        """The weight, if it was made of these tensors as they are now."""
        same = len(made_of) == len(self._made_of) and all(map(operator.is_, made_of, self._made_of))
        return self._weight if same and list(map(_state, made_of)) == self._states else None

    def keep(self, weight: Tensor, made_of: tuple[Tensor, ...]) -> Tensor:
        self._weight, self._made_of, self._states = weight, made_of, list(map(_state, made_of))
        return weight


def _state(t: Tensor) -> tuple[int, int]:
    """Another one after a write to t, or to its `.data` if that gives it other memory."""
    if is_transformed(t) or is_sharded(t):  # which have no memory to ask for
        return _version(t), 0
    return _version(t), t.untyped_storage()._cdata


def _version(t: Tensor) -> int:
    """How many writes autograd knows of: none to what is made in inference mode."""
    return 0 if t.is_inference() else t._version


def _context() -> tuple[Any, ...]:
    return threading.get_ident(), torch.is_grad_enabled(), transform_level(), saving_hooks()
