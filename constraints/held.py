"""Which tensors of a model are constrained: the one list that reports, exports and rebasing go by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manifolds import Manifold

from .method import Method
from .names import owners
from .riemannian import Riemannian, recorded
from .trivialization import Trivialization, trivialized


@dataclass(frozen=True)
class Held:
    """One constrained tensor: owner.attribute, called name in the model, is a point of the manifold."""

    name: str
    owner: nn.Module
    attribute: str
    manifold: Manifold
    method: Method

    @property
    def weight(self) -> Tensor:
        """The present value, without its graph. ValueError where the coordinates are such that there is none."""
        weight: Tensor = getattr(self.owner, self.attribute)
        return weight.detach()

    @property
    def like(self) -> Tensor:
        """A tensor of the shape, dtype and device of the weight, which is not computed for it."""
        for attribute, parametrization in trivialized(self.owner):
            if attribute == self.attribute:
                return torch.empty_like(parametrization.base, dtype=parametrization.dtype)
        like: Tensor = getattr(self.owner, self.attribute)
        return like.detach()

    @property
    def identity(self) -> int:
        """The same number for names that share a tensor."""
        for attribute, parametrization in trivialized(self.owner):
            if attribute == self.attribute:
                return id(parametrization)
        return id(self.owner._parameters[self.attribute])


def held(model: nn.Module) -> Iterator[Held]:
    """Every constrained tensor of the model, under each of its names."""
    for prefix, owner in owners(model):
        for attribute, manifold in recorded(owner).items():
            yield Held(prefix + attribute, owner, attribute, manifold, Riemannian())
        for attribute, parametrization in trivialized(owner):
            method = Trivialization(parametrization.rebase_every)
            yield Held(prefix + attribute, owner, attribute, parametrization.manifold, method)
