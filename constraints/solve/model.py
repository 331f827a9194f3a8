"""The parameters of a model as one point: constrained ones on their manifolds, the others free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifolds import Euclidean, Manifold

from ..composing import composed
from ..held import held_once
from ..names import owners
from ..riemannian import Riemannian, param_groups
from ..sharding import check_not_sharded
from ..ways import code
from .outside import Outside
from .piece import Piece
from .points import DTYPES, check_alike
from .problem import Problem
from .space import Rows, Space


def _check_method(model: nn.Module) -> None:
    """ValueError where the model has coordinates of weights, for the gradient by these depends on the chart."""
    sets = {each.name: code(each.manifold) for each in held_once(model) if not isinstance(each.method, Riemannian)}
    for prefix, owner in owners(model):
        for attribute, each in composed(owner):
            if parts := [name for name in sets if name.startswith(f"{prefix}{attribute}.")]:
                for name in parts:
                    del sets[name]
                sets[prefix + attribute] = repr(each.parts.composition)
    if sets:
        calls = "; ".join(
            f"unconstrain(model, {name!r}); constrain(model, {name!r}, {manifold}, Riemannian())"
            for name, manifold in sets.items()
        )
        raise ValueError(
            f"minimize moves weights that are held by Riemannian(); held by a Trivialization: {', '.join(sets)}. "
            f"Write {calls}."
        )


class Parameters:
    """Tensors that a closure reads by itself, written before it is called."""

    def __init__(self, named: dict[str, Tensor], manifolds: dict[str, Manifold]) -> None:
        for name, p in named.items():
            check_not_sharded(p, name, "Solvers need whole points: call minimize before fully_shard.")
        check_alike(named)
        self.tensors = list(named.values())
        pieces = [Piece(name, manifolds[name], tuple(p.shape), p.dtype) for name, p in named.items()]
        self.space = Space(pieces, batched=False)
        self.rows: Rows = self.space.join([p.detach().clone() for p in self.tensors])

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Those of the model that need a gradient. Raises ValueError for coordinates and for half precision."""
        _check_method(model)
        named: dict[str, Tensor] = {}
        manifolds: dict[str, Manifold] = {}
        for group in param_groups(model):
            for name, p in group["params"]:
                if p.requires_grad:
                    named[name], manifolds[name] = p, group["manifold"] or Euclidean()
        if not named:
            raise ValueError(f"no parameter of {type(model).__name__} needs a gradient; nothing can be minimized.")
        for name, p in named.items():
            if p.dtype not in DTYPES:
                raise TypeError(
                    f"{name} has dtype {p.dtype}; solvers work in float32 or float64, real or complex. Write "
                    f"model.double()."
                )
        return cls(named, manifolds)

    def problem(self, closure: Callable[[], Any]) -> Problem:
        """The closure on the rows."""
        outside = Outside([piece.name for piece in self.space.pieces])
        return Problem(self.space, lambda _: closure(), 1, outside, self._placed)

    @torch.no_grad()
    def put(self, rows: Rows) -> None:
        """Write the point into the tensors; those that hold it already are left alone, and their graphs with them."""
        for p, part in zip(self.tensors, self.space.split(rows), strict=True):
            if not torch.equal(p, part):
                p.copy_(part)

    def _placed(self, parts: list[Tensor]) -> list[Tensor]:
        self.put(self.space.join(parts))
        return self.tensors
