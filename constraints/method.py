"""What an engine does: hold a tensor of a module on a manifold, and let it go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from manifolds import Manifold

from .names import describe


class Site(NamedTuple):
    """A Parameter where a module keeps it: parameter is owner.attribute, called name in messages; inside of the module
    that was given, or tied from elsewhere."""

    name: str
    owner: nn.Module
    attribute: str
    parameter: nn.Parameter
    inside: bool = True

    def __str__(self) -> str:
        return describe(self.owner, self.name)


class Method(ABC):
    """An engine. `constrain` validates everything first, so that neither call has a reason to fail."""

    @abstractmethod
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of weights that this engine can hold."""

    @abstractmethod
    def hold(self, sites: Sequence[Site], manifold: Manifold, value: Tensor) -> None:
        """Set one Parameter, found at all of these sites, to value, a point of the manifold, and keep it there."""

    @abstractmethod
    def release(self, places: Sequence[tuple[nn.Module, str]]) -> Sequence[tuple[nn.Module, str]]:
        """Leave a plain Parameter with the present value at all (owner, attribute) that share it, also elsewhere in the
        process. Returns them all."""
