"""The trivialization engine: the weight is a retraction of free coordinates, which any optimizer can train."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from manifolds import Manifold
from manifolds.engine import engine
from manifolds.kernels.transforms import is_transformed

from .copying import forget_computed_weights, make_copyable
from .decay import enlist
from .inside import is_traced
from .leaving import give_way, release
from .memo import Memo
from .method import Method, Site
from .passes import watch
from .precision import exact_products
from .schedule import schedule
from .seen import Seen, settled
from .spoiled import assigned
from .tables import Dense
from .values import admit, check_finite, code, initial, is_finite, master_dtype, may_look, point_code

COUNT = "_extra_state"  # torch's key for what get_extra_state gives


@dataclass(frozen=True)
class Trivialization(Method):
    """weight = move(base, coordinates(base, original)): `original` is a free Parameter, `base` a fixed point, a
    Parameter too, `0.base_point`, that requires no gradient.

    Registered through `torch.nn.utils.parametrize`: the weight is a property, `module.weight = W` moves the base to W
    and zeroes the coordinates, and raises ValueError if W is not on the manifold. It is computed once in each forward
    pass of the module, without autocast and in float32 or better, and rounded to the dtype of the weight last; a half
    precision weight keeps coordinates and base in float32.

    `torch.func.functional_call` takes the coordinates, by their name in named_parameters(). The name of the weight
    would be an assignment, through which no gradient flows; in a transform of torch.func it is a ValueError.

    Weight decay on `original` pulls the weight towards its base, and nowhere else, of which an optimizer warns once;
    `param_groups` leaves it out.

    The base follows the weight: where a step leaves coordinates so long that the map bends, on an accelerator every 32
    steps, the base moves to the present weight, as `rebase` does it. The weight stays, to rounding, and every point of
    its component is in reach. What optimizers of torch keep is carried; under another kind of optimizer, ASGD or one
    that steps others, the base stays, for what it keeps may refer to it. LBFGS begins a new history.

    rebase_every: None for that; a number, for a base that moves after so many steps, whatever the optimizer, and
    `math.inf` for one that stays, as where code keeps or averages the coordinates themselves. Steps are counted where
    there is a gradient and lr is not 0. The count is in the state dict, as `_extra_state`, so that a run goes on
    from a checkpoint as it would have. Raises ValueError if it is not a positive number.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Trivialization(rebase_every=100))
    >>> sorted(name for name, _ in layer.named_parameters())
    ['bias', 'parametrizations.weight.0.base_point', 'parametrizations.weight.original']
    """

    rebase_every: int | float | None = None

    def __post_init__(self) -> None:
        every = self.rebase_every
        if every is not None and every != math.inf and (not isinstance(every, int) or every < 1):
            raise ValueError(
                f"rebase_every is a number of optimizer steps, 1 or more, or math.inf for a base that stays; "
                f"got {every!r}."
            )

    def __repr__(self) -> str:
        every = "math.inf" if self.rebase_every == math.inf else self.rebase_every
        return f"Trivialization({'' if every is None else f'rebase_every={every}'})"

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16

    def hold(self, sites: Sequence[Site], manifold: Manifold, value: Tensor) -> None:
        parameter = sites[0].parameter
        held = Trivialized(manifold, value, self.rebase_every, str(sites[0]))
        for site in sites:
            order = list(site.owner._parameters)
            # stand-ins, for only torch can make the property; all sites share the Parameter afterwards
            site.owner._parameters[site.attribute] = nn.Parameter(torch.empty(0))
            parametrize.register_parametrization(site.owner, site.attribute, nn.Identity(), unsafe=True)
            coordinates: Any = _lists(site.owner)[site.attribute]
            coordinates.__class__ = Coordinates
            coordinates[0], coordinates.original, coordinates.unsafe = held, parameter, False
            coordinates.order, coordinates.steps = order, 0
            schedule(coordinates)
            enlist(coordinates)
            make_copyable(site.owner)
            forget_computed_weights(site.owner)
            watch(site.owner)
        held.dtype = parameter.dtype
        held.is_table = any(isinstance(site.owner, (nn.Embedding, nn.EmbeddingBag)) for site in sites)
        parameter.data = torch.zeros_like(value)
        parameter.grad = None

    def release(self, places: Sequence[tuple[nn.Module, str]]) -> Sequence[tuple[nn.Module, str]]:
        return release(places)


class Trivialized(nn.Module):
    """The parametrization: coordinates -> point, near a base.

    The base is a Parameter that requires no gradient, so that what walks over parameters() has the whole weight. It is
    read detached: nothing trains it, whatever becomes of its requires_grad.
    """

    base_point: nn.Parameter
    is_table = False  # of an Embedding, whose gradient may be sparse: no map has a derivative for that

    def __init__(self, manifold: Manifold, base: Tensor, rebase_every: int | float | None, name: str) -> None:
        super().__init__()
        self.manifold = manifold
        self.engine = engine(manifold)
        self.dtype = base.dtype
        self.rebase_every = rebase_every
        self.name = name
        self.memo = Memo()
        self.base_point = nn.Parameter(base.contiguous(), requires_grad=False)
        self.seen = Seen()
        self.seen.take(manifold, self.base)

    def forward(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """move(base, coordinates(base, original)), shape and dtype of the weight. ValueError where that has no value,
        or where the weight that was read before was changed in place, as by torch.nn.init."""
        if torch.compiler.is_compiling():
            return self.evaluate(original).to(self.dtype)
        if self.memo.was_changed():
            raise ValueError(
                f"{self.name} was changed in place, which does nothing to a weight that is computed by "
                f"Trivialization(). Assign a point of {self.manifold} instead, module.weight = value, or constrain it "
                f"with init=; to work on a copy, take one by .detach().clone()."
            )
        return self.memo.read(original, self.compute)

    @property
    def base(self) -> Tensor:
        """The base, as a constant."""
        return self.base_point.detach()

    def check_base(self) -> None:
        """ValueError if others wrote to the base, and it is no point any more."""
        base = self.base
        if not (base.is_meta or is_transformed(base) or is_traced() or self.seen.knows(base)):
            self._look(base)

    @torch.no_grad()
    def _look(self, base: Tensor) -> None:
        own = isinstance(self.base_point, nn.Parameter)  # and not a tensor that was given to functional_call
        settled_at = settled(self.manifold, base, self.seen if own else None)
        if settled_at is None:
            shape = tuple(base.shape)
            random, point = f"{code(self.manifold)}.random{shape}", point_code(self.manifold, shape)
            raise ValueError(
                f"{self.name} has no value: its base, shape {shape}, was changed to a tensor that is not on "
                f"{self.manifold}, as by an initializer or an average over parameters(). Assign a point, module.weight "
                f"= {random}{'' if point == random else f' or {point}'}; to average models, use "
                f"constraints.AveragedModel."
            )
        if own:
            if settled_at is not base:
                base.copy_(settled_at)
            self.seen.take(self.manifold, base)

    def evaluate(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The weight before it is rounded to its dtype; contiguous, as a Parameter."""
        with exact_products(original.device.type):
            base = self.base
            c = original.to(torch.promote_types(original.dtype, base.dtype))
            return self.engine.move(base, self.engine.coordinates(base, c)).contiguous()

    def compute(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """`exact`, rounded to the dtype of the weight."""
        return self.exact(original).to(self.dtype)

    def exact(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """`evaluate`. ValueError where that has no value: the base is off, a factorization fails, or, looked at on CPU
        only, it is not finite."""
        failure = None
        self.check_base()
        try:
            weight = self.evaluate(original)
            if not may_look(weight) or is_finite(weight):
                return Dense.apply(weight) if self.is_table and not is_transformed(weight) else weight  # type: ignore
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            failure = error
        raise ValueError(
            f"{self.name} has no value: its coordinates, shape {tuple(original.shape)}, have NaN or infinite "
            f"entries, or are too far from their base. Look for the step that put them there, assign a point of "
            f"{self.manifold}, module.weight = value, then rebase(model, optimizer), which drops the state of the "
            f"optimizer if it has NaN, too; train with smaller steps or with rebase_every=."
        ) from failure

    def right_inverse(self, value: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """ValueError: torch calls it where this is registered for another tensor, which would share the base."""
        raise ValueError(
            f"the parametrization of {self.name} is of that tensor alone. Call constrain on the other module, too; to "
            f"give it the same value, assign it, other.weight = module.weight.detach()."
        )

    def admit(self, value: Tensor) -> Tensor:
        """A value that was assigned to the weight, as a point in the dtype of the base. ValueError if it is none."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name} takes a tensor; got a {type(value).__name__}. To free it, call unconstrain.")
        if is_transformed(value):
            raise ValueError(
                f"{self.name} is held by Trivialization(): in a transform of torch.func a value for it has no way to "
                f"its derivative. Pass the coordinates to functional_call, under their name in named_parameters(), "
                f"'...parametrizations.<name>.original'."
            )
        like = torch.empty_like(self.base, dtype=self.dtype)
        return admit(self.manifold, value, like, self.name, "Assign {nearest}(value) to take the nearest point.")

    def extra_repr(self) -> str:
        return repr(self.manifold)

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.memo, replica.seen = Memo(), Seen()
        return replica


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
        """Whether `original` is one tensor: yes. Only torch's remove_parametrizations asks, which leaves `original` for
        the weight: so that is what it becomes, here and at all places of a tied one."""
        give_way(self)
        return True

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
        held.base.copy_(point)  # in place: other processes, graphs and optimizers have this memory
        held.seen.take(held.manifold, held.base)
        held.memo.close()
        self.original.zero_()

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

    def start(self, value: Tensor) -> None:
        """Start anew from the point nearest to value. ValueError if there is none."""
        held: Any = self[0]
        self.set_point(initial(held.manifold, value, None, held.name))
        assigned(self.original)

    def get_extra_state(self) -> Tensor:
        """`steps`, as a tensor, which every way of keeping a state dict can keep."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
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
    lists = owner._modules.get("parametrizations")
    if isinstance(lists, nn.ModuleDict):
        for attribute, coordinates in lists.items():
            if isinstance(coordinates, Coordinates):
                yield attribute, coordinates


def trivialized(owner: nn.Module) -> Iterator[tuple[str, Trivialized]]:
    """(attribute, parametrization) of every trivialized tensor of this module itself."""
    for attribute, coordinates in coordinates_of(owner):
        yield attribute, coordinates[0]  # type: ignore[misc]


def _lists(owner: nn.Module) -> nn.ModuleDict:
    return owner._modules["parametrizations"]  # type: ignore[return-value]
