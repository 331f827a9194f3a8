"""Moving the base of a trivialization to the present weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from .held import held
from .trivialization import Coordinates, Momentum, coordinates_of


@dataclass(frozen=True)
class Rebased:
    """What `rebase` did to one tensor.

    momentum: "carried" where the coordinates were zero, so that base and momentum stay as they are; "reset" where the
    state of the optimizer was dropped; "no optimizer" where none that holds the coordinates was given: its momentum, if
    it has any, refers to the old base.
    """

    name: str
    momentum: Momentum


def rebase(module: nn.Module, optimizer: Optimizer | None = None) -> list[Rebased]:
    """Move the base of every trivialization in the module to its present weight, and zero the coordinates in place.

    Weights stay as they are, to rounding. Far from its base a retraction bends the landscape; after this it does not.
    What the optimizer keeps for the coordinates refers to the old base and has no exact counterpart at the new one: it
    is dropped, with the gradient, so that the tensor starts as in a new optimizer and zero gradients move nothing.
    Riemannian constraints have no base and are left alone. Returns what was done, tensor by tensor, a tied one once.
    Raises ValueError, before anything moves, where a weight has NaN or infinite entries.
    """
    found: dict[int, tuple[str, Coordinates]] = {}
    for each in held(module):
        for attribute, coordinates in coordinates_of(each.owner):
            if attribute == each.attribute:
                found.setdefault(each.identity, (each.name, coordinates))
    for _, coordinates in found.values():
        coordinates.target()
    done = []
    for name, coordinates in found.values():
        done.append(Rebased(name, coordinates.rebase(optimizer)))
        coordinates.original.grad = None
    return done
