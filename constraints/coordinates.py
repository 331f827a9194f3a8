"""What torch knows of a trivialized tensor: the list of its parametrizations, whose `original` are the coordinates."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from manifolds.kernels.precision import outside_where_lowered

from .decay import enlist
from .finite import check_finite
from .leaving import give_way
from .names import lists_of
from .schedule import schedule
from .sharding import is_sharded, local, put
from .spoiled import assigned
from .values import initial, master_dtype

_REMOVE = parametrize.remove_parametrizations.__code__

COUNT = "_extra_state"  # torch's key for what get_extra_state gives


class Coordinates(ParametrizationList):
    """The ParametrizationList of one trivialized tensor: `original` are its coordinates.

    Its tensors stay in float32 or better when the module goes to half precision.
    """

    order: list[str]
    """The Parameters of the owner when the constraint was made, in their order."""

    steps: int
    """How many optimizer steps trained them."""

    @property
    def is_tensor(self) -> bool:  # type: ignore[override]
        """Whether `original` is one tensor: yes. torch's remove_parametrizations asks and leaves `original` for the
        weight: so that is what it becomes then, here and at all places of a tied one."""
        if sys._getframe(1).f_code is _REMOVE:  # others ask too, as inspect.getmembers
            give_way(self)
        return True

    @outside_where_lowered
    def forward(self) -> Tensor:
        held, *on_top = self
        weight: Tensor = held(self.original)
        for module in on_top:
            weight = module(weight)
        return weight

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        schedule(self)
        enlist(self)

    @torch.no_grad()
    def append(self, module: nn.Module) -> Any:
        """What torch does for a parametrization on top of this one. ValueError where it does not map the weight to a
        tensor of its shape, as weight_norm, which would be found at the next forward pass."""
        held: Any = self[0]
        weight, failure = held.compute(self.original), None
        try:
            # a copy, for spectral_norm makes a step of its iteration
            if copy.deepcopy(module)(weight).shape == weight.shape:
                return super().append(module)
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:
            failure = error
        raise ValueError(
            f"{held.name} is held by Trivialization(), on top of which torch composes parametrizations that map the "
            f"weight to a tensor of its shape; {type(module).__name__} does not. Call unconstrain first."
        ) from failure

    @torch.no_grad()
    def point(self) -> Tensor:
        """The weight without what is composed on top, a tensor of its own."""
        return self[0].compute(self.original).detach().clone()  # type: ignore[no-any-return,operator]

    @torch.no_grad()
    def target(self) -> Tensor:
        """The base that `rebase` moves to: the present weight. ValueError if it has NaN or infinite entries."""
        held: Any = self[0]
        weight: Tensor = held.engine.polish(held.exact(self.original))
        check_finite(weight, held.name)
        return weight

    @torch.no_grad()
    def set_point(self, point: Tensor) -> None:
        """Make a point of the manifold, in the dtype of the base, the base, and zero the coordinates in place."""
        held: Any = self[0]
        put(held.base_point, point)  # in place: other processes, graphs and optimizers have this memory
        local(self.original).zero_()  # at once, for between the two the weight is another one
        held.seen.take(held.manifold, held.base, lasts=not is_sharded(held.base_point))
        held.memo.close()

    @torch.no_grad()
    def right_inverse(self, value: Tensor) -> None:
        """What an assignment to the weight does: base = value, coordinates = 0. ValueError if value is no point."""
        held, *on_top = self
        for module in reversed(on_top):
            if not hasattr(module, "right_inverse"):
                raise RuntimeError(f"parametrization {type(module).__name__} does not implement right_inverse.")
            value = module.right_inverse(value)  # type: ignore[operator]
        self.set_point(held.admit(value))  # type: ignore[operator]
        assigned(self.original)

    def stand_in(self) -> Tensor:
        """A tensor like the weight, for reset_parameters to draw."""
        held: Any = self[0]
        return held.base.to(held.dtype, copy=True)  # type: ignore[no-any-return]

    def start_of(self, value: Tensor) -> Tensor:
        """The point nearest to a value that was drawn, or a random one where there is none. ValueError where it has NaN
        or infinite entries."""
        held: Any = self[0]
        check_finite(value, held.name)
        try:
            return initial(held.manifold, value, None, held.name)
        except ValueError:
            return initial(held.manifold, value, "haar", held.name)

    def start(self, point: Tensor) -> None:
        """Start anew from this point."""
        self.set_point(point)
        assigned(self.original)

    def get_extra_state(self) -> Tensor:
        """`steps`, as a tensor, which every way of keeping a state dict can keep."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        if isinstance(state, Tensor):  # torch.distributed.checkpoint gives a mark where the checkpoint has none
            self.steps = int(state)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self[0].rebase_every is None:  # nothing to count, and no key
            del destination[prefix + COUNT]

    def _load_from_state_dict(
        self, state: Any, prefix: str, data: Any, strict: bool, missing: Any, *lists: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, data, strict, missing, *lists)
        if prefix + COUNT in missing:  # of a plain model, or one that is not rebased by itself
            missing.remove(prefix + COUNT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        held: Any = self[0]
        held.dtype = fn(torch.empty(0, dtype=held.dtype, device=held.base_point.device)).dtype
        held.memo.close()

        def exact(t: Tensor) -> Tensor:
            y = fn(t)
            return y if y.dtype == master_dtype(y.dtype) else t.to(y.device, master_dtype(y.dtype))

        return super()._apply(exact, recurse)  # type: ignore[no-untyped-call]


def coordinates_of(owner: nn.Module) -> Iterator[tuple[str, Coordinates]]:
    """(attribute, coordinates) of every trivialized tensor of this module itself."""
    for attribute, coordinates in lists_of(owner).items():
        if isinstance(coordinates, Coordinates):
            yield attribute, coordinates
