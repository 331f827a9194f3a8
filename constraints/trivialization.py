"""The trivialization engine: the weight is a retraction of free coordinates, which any optimizer can train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn.utils import parametrize

from manifolds import Manifold
from manifolds.engine import engine
from manifolds.kernels.precision import exact_products
from manifolds.kernels.transforms import is_transformed

from .coordinates import Coordinates, coordinates_of
from .copying import forget_computed_weights, make_copyable
from .decay import enlist
from .given import no_assigned
from .giving import give
from .inside import is_traced
from .leaving import release
from .memo import Memo
from .method import Method, Site
from .names import attribute_of, lists_of, read, written
from .passes import watch
from .schedule import schedule
from .seen import Seen, settled
from .sharding import is_sharded, put, whole
from .tables import Dense
from .values import admit, is_finite, master_dtype, may_look, near
from .ways import assigned, point_code, random_code, which_off


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

    The base follows the weight: where a step leaves coordinates so long that the map bends, on an accelerator every 16
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
        counts = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        if every is not None and every != math.inf and not counts:
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
            coordinates: Any = lists_of(site.owner)[site.attribute]
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
        give(parameter, torch.zeros_like(value))

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
        if torch.compiler.is_dynamo_compiling():
            return self._rounded(self.evaluate(original), original)
        if self.memo.was_changed():
            raise ValueError(
                f"{self.name} was changed in place, which does nothing to a weight that is computed by "
                f"Trivialization(). Assign a point of {self.manifold} instead, {written(self.attribute, 'value')}, or "
                f"constrain it with init=; to work on a copy, take one by .detach().clone()."
            )
        return self.memo.read(original, self.compute, self.base_point)

    @property
    def attribute(self) -> str:
        """What the weight is called by its module."""
        return attribute_of(self.name)

    @property
    def base(self) -> Tensor:
        """The base, as a constant; gathered, where it is sharded."""
        return whole(self.base_point.detach())

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
            random, point = random_code(self.manifold, base), point_code(self.manifold, base)
            assignment = written(self.attribute, random)
            which = which_off(self.manifold, base, near(base.dtype))
            raise ValueError(
                f"{self.name} has no value: its base, shape {shape}, was changed to a tensor that is not on "
                f"{self.manifold}{which}, as by an initializer, an average over parameters(), or by fully_shard "
                f"of a model that began differently on each process. Assign a point, "
                f"{assignment}{'' if point == random else f' or {point}'}; to average models, use "
                f"constraints.AveragedModel; to shard one, make it by the same seed everywhere."
            )
        if own:
            if settled_at is not base:
                base.copy_(settled_at)
                if is_sharded(self.base_point):
                    put(self.base_point, base)
            self.seen.take(self.manifold, base, lasts=not is_sharded(self.base_point))

    def evaluate(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The weight before it is rounded to its dtype; contiguous, as a Parameter."""
        with exact_products(original.device.type):
            base, original = self.base, whole(original)
            if (wide := master_dtype(base.dtype)) != base.dtype:
                # gathered in half precision, as by a MixedPrecisionPolicy; what is left of that, 3/4 e^2, is less than
                # the weight is rounded by
                base = self.engine.polish(base.to(wide))
            c = original.to(torch.promote_types(original.dtype, base.dtype))
            return self.engine.move(base, self.engine.coordinates(base, c)).contiguous()

    def compute(self, original: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """`exact`, rounded to the dtype of the weight."""
        return self._rounded(self.exact(original), original)

    def _rounded(self, weight: Tensor, original: Tensor) -> Tensor:
        """The weight in its dtype, or that of coordinates in half precision, as a MixedPrecisionPolicy gives them."""
        return weight.to(self.dtype if original.dtype == master_dtype(original.dtype) else original.dtype)

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
            f"{self.manifold}, {written(self.attribute, 'value')}, then rebase(model, optimizer), which drops the "
            f"state of the optimizer if it has NaN, too; train with smaller steps or with rebase_every=."
        ) from failure

    def right_inverse(self, value: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """ValueError: torch calls it where this is registered for another tensor, which would share the base."""
        raise ValueError(
            f"the parametrization of {self.name} is of that tensor alone. Call constrain on the other module, too; to "
            f"give it the same value, "
            f"assign it, {written(self.attribute, read(self.attribute) + '.detach()', 'other')}."
        )

    def admit(self, value: Tensor) -> Tensor:
        """A value that was assigned to the weight, as a point in the dtype of the base. ValueError if it is none."""
        if not isinstance(value, Tensor):
            raise no_assigned(self.name, value)
        if is_transformed(value):
            raise ValueError(
                f"{self.name} is held by Trivialization(): in a transform of torch.func a value for it has no way to "
                f"its derivative. Pass the coordinates to functional_call, under their name in named_parameters(), "
                f"'...parametrizations.<name>.original'."
            )
        like = torch.empty(self.base_point.shape, dtype=self.dtype, device=self.base_point.device)
        return admit(self.manifold, value, like, self.name, assigned(self.attribute))

    def extra_repr(self) -> str:
        return repr(self.manifold)

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.memo, replica.seen = Memo(), Seen()
        return replica


def trivialized(owner: nn.Module) -> Iterator[tuple[str, Trivialized]]:
    """(attribute, parametrization) of every trivialized tensor of this module itself."""
    for attribute, coordinates in coordinates_of(owner):
        yield attribute, coordinates[0]  # type: ignore[misc]
