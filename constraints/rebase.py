"""Moving the base of a trivialization to the present weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from .held import held_once
from .trivialization import Momentum


@dataclass(frozen=True)
class Rebased:
    """What `rebase` did to one tensor.

    momentum: "carried" where the coordinates were zero, so that base and momentum stay as they are; "reset" where the
    state of the optimizer was dropped, as it also is where it has NaN or infinite entries; "no optimizer" where none
    that holds the coordinates was given: its momentum, if it has any, refers to the old base.
    """

    name: str
    momentum: Momentum


def rebase(module: nn.Module, optimizer: Optimizer | None = None) -> list[Rebased]:
    """Move the base of every trivialization in the module to its present weight, and zero the coordinates in place.

    Weights stay as they are, to rounding. Far from its base a retraction bends the landscape; after this it does not.
    What the optimizer keeps for the coordinates refers to the old base and has no exact counterpart at the new one: it
    is dropped, with the gradient, so that the tensor starts as in a new optimizer and zero gradients move nothing.
    `torch.optim.LBFGS` and its subclasses have one history for all their parameters, and lose it all. An optimizer of
    another kind that keeps more than `optimizer.state[parameter]` has to be made anew by who called this.
    Riemannian constraints have no base and are left alone. Returns what was done, tensor by tensor, a tied one once.
    Raises ValueError, before anything moves, where a weight has NaN or infinite entries.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> [done.momentum for done in rebase(layer)]  # nothing has moved yet
    ['carried']
    """
    found = [(each.name, each.coordinates) for each in held_once(module) if each.coordinates is not None]
    for _, coordinates in found:
        coordinates.target()
    done = []
    for name, coordinates in found:
        done.append(Rebased(name, coordinates.rebase(optimizer)))
        coordinates.original.grad = None
    return done
