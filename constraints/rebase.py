"""Moving the base of a trivialization to the present weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from .chart import Momentum, groups_of, move_base
from .held import held_once
from .names import check_module


@dataclass(frozen=True)
class Rebased:
    """What `rebase` did to one tensor.

    momentum: "carried" where what the optimizer keeps refers to the new base now, or the base stays, for coordinates
    were zero; "reset" where the state of the optimizer was dropped, as it is where it has NaN, or is of before another
    weight was assigned; "no optimizer" where none that holds the coordinates was given: its momentum, if it has any,
    refers to the old base.
    """

    name: str
    momentum: Momentum


def rebase(module: nn.Module, optimizer: Optimizer | None = None) -> list[Rebased]:
    """Move the base of every trivialization in the module to its present weight, and zero the coordinates in place.

    Weights stay as they are, to rounding. Far from its base a retraction bends the landscape; after this it does not.
    A `Trivialization()` does it by itself in training, see there.

    Gradients, and the first moments that an optimizer of torch keeps, are carried: they become what they are in the new
    coordinates, the old ones under the inverse adjoint of the derivative of the change, and no longer than they were.
    Of second moments that fade those below the median of their point become that median, for directions of entries mix;
    the others, and all on flat sets, stay. What other optimizers keep has no counterpart that is known here: it is
    dropped, so that the tensor starts as in a new optimizer. So it is for ASGD, which averages coordinates, and for
    LBFGS, which has one history for all its parameters and loses it all. An optimizer that keeps more than
    `optimizer.state[parameter]` has to be made anew by who called this.
    Riemannian constraints have no base and are left alone. Returns what was done, tensor by tensor, a tied one once.
    Raises ValueError, before anything moves, where a weight has NaN or infinite entries.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> [done.momentum for done in rebase(layer)]  # nothing has moved yet
    ['carried']
    """
    check_module(module, "rebase")
    found = [(each.name, each.coordinates) for each in held_once(module) if each.coordinates is not None]
    for _, coordinates in found:
        coordinates.target()
    given = [] if optimizer is None else [(optimizer, groups_of(optimizer))]
    return [Rebased(name, move_base(c, [each for each, held in given if id(c.original) in held])) for name, c in found]
