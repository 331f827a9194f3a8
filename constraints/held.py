"""Which tensors of a model are constrained: the one list that reports, exports and rebasing go by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifolds import Manifold

from .coordinates import Coordinates, coordinates_of
from .method import Method
from .names import owners
from .records import recorded
from .riemannian import Riemannian
from .sharding import whole
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
        """The present point, without its graph and without what torch composes on top of it, as a gain. ValueError
        where the coordinates are such that there is none."""
        coordinates = self.coordinates
        if coordinates is None:
            return whole(getattr(self.owner, self.attribute).detach())
        return coordinates[0](coordinates.original).detach()  # type: ignore[no-any-return]

    @property
    def coordinates(self) -> Coordinates | None:
        """What a `Trivialization` computes the weight from; None under another engine."""
        return dict(coordinates_of(self.owner)).get(self.attribute)

    @property
    def composed(self) -> tuple[str, ...]:
        """The kinds of the parametrizations on top of the point, which compute the tensor of the module from it."""
        coordinates: Any = self.coordinates
        return () if coordinates is None else tuple(type(each).__name__.lstrip("_") for each in list(coordinates)[1:])

    @property
    def like(self) -> Tensor:
        """A tensor of the shape, dtype and device of the weight, which is not computed for it."""
        held: Any = None if self.coordinates is None else self.coordinates[0]
        p = getattr(self.owner, self.attribute) if held is None else held.base_point
        return torch.empty(p.shape, dtype=p.dtype if held is None else held.dtype, device=p.device)

    @property
    def identity(self) -> int:
        """The same number for names that share a tensor."""
        return id(self.owner._parameters[self.attribute] if self.coordinates is None else self.coordinates[0])


def held_once(model: nn.Module) -> list[Held]:
    """Every constrained tensor of the model, a tied one under the first of its names."""
    found: dict[int, Held] = {}
    for each in held(model):
        found.setdefault(each.identity, each)
    return list(found.values())


def held(model: nn.Module) -> Iterator[Held]:
    """Every constrained tensor of the model, under each of its names."""
    for prefix, owner in owners(model):
        for attribute, manifold in recorded(owner).items():
            yield Held(prefix + attribute, owner, attribute, manifold, Riemannian())
        for attribute, parametrization in trivialized(owner):
            method = Trivialization(parametrization.rebase_every)
            yield Held(prefix + attribute, owner, attribute, parametrization.manifold, method)
