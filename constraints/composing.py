"""Weights that are composed of several points: each part is a tensor of its own, held by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from manifolds import Euclidean, Manifold
from manifolds._points import NotRealError
from manifolds.compositions import Composition
from manifolds.kernels.others import without_others
from manifolds.kernels.precision import exact_products, outside_where_lowered

from .copying import forget_computed_weights, make_copyable
from .finite import check_finite
from .given import AS_TENSOR, kind_of_value, no_assigned, no_tensor
from .memo import Memo
from .method import Site
from .moving import check_moves, of_blocks
from .names import attribute_of, lists_of, written
from .passes import unwatch, watch
from .replaced import replace
from .sharding import put, whole
from .ties import places_where
from .values import Init, at_least_float32, master_dtype, near

Hold = Callable[[nn.Module, str, Manifold], object]


class Parts(nn.Module):
    """The parts of one composed tensor, Parameters by their names, constants as buffers; called, the tensor.

    Parts are in float32 or better; the tensor is rounded to its dtype last.
    """

    holds_parts = True  # a module of parametrizations whose tensors are constrained by name

    def __init__(self, composition: Composition, like: Tensor, name: str) -> None:
        super().__init__()
        self.composition, self.shape, self.dtype, self.name = composition, tuple(like.shape), like.dtype, name
        self.memo, self._key = Memo(), torch.empty(0)

    def forward(self) -> Tensor:
        """compose(**parts), within one pass of the owner computed once."""
        if torch.compiler.is_dynamo_compiling():
            return self.compute()
        if self.memo.was_changed():
            raise ValueError(
                f"{self.name} was changed in place, which does nothing to a weight that is computed from the parts of "
                f"{self.composition}. Assign a tensor instead, {written(attribute_of(self.name), 'value')}, or "
                f"change a part."
            )
        return self.memo.read(self._key, self.compute, *self.parameters(), *self.buffers())

    def compute(self, _: Any = None) -> Tensor:
        points = self.points()
        device = next(iter(points.values())).device
        with exact_products(device.type):
            made: Tensor = self.composition.made(points, self.shape)
            return made.to(self.dtype).contiguous()

    def points(self) -> dict[str, Tensor]:
        """The present parts, as they train."""
        return {name: whole(getattr(self, name)) for name in self.composition.parts(self.shape)}

    def like(self) -> Tensor:
        """A tensor of the shape, dtype and device of the composed one, which is not computed for it."""
        device = next(iter([*self.parameters(), *self.buffers()])).device
        return torch.empty(self.shape, dtype=self.dtype, device=device)

    def held(self) -> list[tuple[Manifold, Tensor]]:
        """(manifold, point) of each part."""
        parts = self.composition.parts(self.shape).items()
        return [(manifold or Euclidean(), getattr(self, name)) for name, (manifold, _) in parts]

    @torch.no_grad()
    def set_points(self, points: dict[str, Tensor]) -> None:
        """Write points into the parts, in place."""
        for name, point in points.items():
            if name in lists_of(self):
                setattr(self, name, point)
            else:
                put(getattr(self, name), point)
        self.memo.close()

    def extra_repr(self) -> str:
        return f"{self.composition}, {self.shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        some: Any = next(iter([*self.parameters(), *self.buffers()]))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=some.device)).dtype
        self.memo.close()

        def exact(t: Tensor) -> Tensor:
            y = fn(t)
            return y if y.dtype == master_dtype(y.dtype) else t.to(y.device, master_dtype(y.dtype))

        return super()._apply(exact, recurse)  # type: ignore[no-untyped-call]

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.memo = Memo()
        return replica


class Composed(ParametrizationList):
    """The ParametrizationList of one composed tensor: its first module has the parts, what torch composes on top
    follows."""

    order: list[str]
    """The Parameters of the owner when the constraint was made, in their order."""

    @property
    def parts(self) -> Parts:
        parts: Any = self[0]
        return parts  # type: ignore[no-any-return]

    @outside_where_lowered
    def forward(self) -> Tensor:
        x: Tensor = self.parts()
        for module in list(self)[1:]:
            x = module(x)
        return x

    @torch.no_grad()
    def right_inverse(self, value: Tensor) -> None:
        """What an assignment to the weight does: the parts become those of value. ValueError if it has none."""
        if not isinstance(value, Tensor):
            raise no_assigned(self.parts.name, value)
        for module in reversed(list(self)[1:]):
            if not hasattr(module, "right_inverse"):
                raise RuntimeError(f"parametrization {type(module).__name__} does not implement right_inverse.")
            value = module.right_inverse(value)  # type: ignore[operator]
        self.parts.set_points(admitted(self.parts.composition, value, self.parts.like(), self.parts.name))

    def stand_in(self) -> Tensor:
        """A tensor like the weight, for reset_parameters to draw."""
        return self.parts.compute().detach().clone()

    def start_of(self, value: Tensor) -> dict[str, Tensor]:
        """The parts of what is nearest to a value that was drawn, or random ones where it has none. ValueError where it
        has NaN or infinite entries."""
        check_finite(value, self.parts.name)
        try:
            return initial_points(self.parts.composition, value, None, self.parts.name)
        except ValueError:
            return initial_points(self.parts.composition, value, "haar", self.parts.name)

    def start(self, points: dict[str, Tensor]) -> None:
        """Start anew from these parts."""
        self.parts.set_points(points)


def initial_points(composition: Composition, tensor: Tensor, init: Init, who: str) -> dict[str, Tensor]:
    """The parts that a tensor of this shape starts from, in float32 or better; see `values.initial`."""
    x = at_least_float32(tensor.detach())
    composition.parts(x.shape)
    if init is None:
        check_finite(x, who, ", or a fresh start: init='haar'")
        return _decomposed(composition, x, who, has_init=True)
    if isinstance(init, str):
        if init == "haar":
            return composition.random_points(x.shape, dtype=x.dtype, device=x.device)
        if init != "identity" or x.dim() < 2:
            raise ValueError(
                f"init of {who} on {composition} is 'haar' (random parts), 'identity', a tensor or a function; got "
                f"{init!r}."
            )
        eye = of_blocks(composition, x, lambda _, zero: zero + torch.eye(*zero.shape[-2:]).to(zero))
        return admitted(composition, eye, x, f"init='identity' of {who}", has_init=True)
    if isinstance(init, Tensor):
        return admitted(composition, init, tensor, f"init of {who}", has_init=True)
    if not callable(init):
        raise TypeError(
            f"init of {who} is 'haar', 'identity', a tensor or a function; got {kind_of_value(init)}. {AS_TENSOR}"
        )
    return admitted(composition, init(tensor.detach().clone()), tensor, f"init of {who}", has_init=True)


def hold_parts(sites: Sequence[Site], composition: Composition, points: dict[str, Tensor], hold: Hold) -> None:
    """Let the tensor at these sites be composed of points; hold(module, name, manifold) holds each of them."""
    like = sites[0].parameter
    parts = Parts(composition, like, str(sites[0]))
    for name, (manifold, _) in composition.parts(like.shape).items():
        point = points[name].detach().clone(memory_format=torch.contiguous_format)
        if manifold is None:
            parts.register_buffer(name, point)
            continue
        parts.register_parameter(name, nn.Parameter(point, requires_grad=like.requires_grad))
        if manifold != Euclidean():
            hold(parts, name, manifold)
    for site in sites:
        order = list(site.owner._parameters)
        # a stand-in, for only torch can make the property
        site.owner._parameters[site.attribute] = nn.Parameter(torch.empty(0))
        parametrize.register_parametrization(site.owner, site.attribute, nn.Identity(), unsafe=True)
        made: Any = lists_of(site.owner)[site.attribute]
        made.__class__ = Composed
        made[0], made.unsafe, made.is_tensor, made.ntensors, made.order = parts, False, False, 0, order
        del made.original
        make_copyable(site.owner)
        forget_computed_weights(site.owner)
        watch(site.owner)
    replace(like, str(sites[0]))


def release_parts(parts: Parts) -> list[tuple[nn.Module, str]]:
    """Leave a plain Parameter with the present value at all places of one composed tensor. Returns them."""
    places = places_where(lambda each: isinstance(each, Composed) and each.parts is parts)
    trains = any(p.requires_grad for p in parts.parameters())
    owner, attribute = places[0]
    parameter = nn.Parameter(getattr(owner, attribute).detach().clone(), requires_grad=trains)
    for owner, attribute in places:
        order = dict(composed(owner))[attribute].order
        parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
        owner._parameters[attribute] = parameter
        for later in order[order.index(attribute) + 1 :]:
            if later in owner._parameters:
                owner._parameters[later] = owner._parameters.pop(later)
        unwatch(owner)
    for owner, _ in places:
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()
    for p in parts.parameters():
        replace(p, parts.name)
    return places


def composed(owner: nn.Module) -> Iterator[tuple[str, Composed]]:
    """(attribute, its list) of every composed tensor of this module itself."""
    for attribute, each in lists_of(owner).items():
        if isinstance(each, Composed):
            yield attribute, each


def admitted(composition: Composition, value: Any, like: Tensor, who: str, has_init: bool = False) -> dict[str, Tensor]:
    """The parts of a given value. TypeError for what is no tensor; ValueError for another shape or kind, NaN, or
    a value that has none. has_init: whether it came as init, where a word would do."""
    if not isinstance(value, Tensor):
        raise no_tensor(who, value)
    if value.shape != like.shape or (value.is_complex() and not like.is_complex()):
        got = f"{tuple(value.shape)} of {value.dtype}"
        raise ValueError(f"{who} needs shape {tuple(like.shape)} of {like.dtype}; got {got}.")
    x = value.detach().to(device=like.device, dtype=master_dtype(like.dtype))
    points = _decomposed(composition, x, who, has_init)
    made = composition.made(points, x.shape)
    off, within = (x - made).abs(), near(like.dtype) * max(1.0, float(x.abs().max())) if x.numel() else 0.0
    if not bool((off <= within).all()):  # NaN is not <=
        far = (~(off <= within)).nonzero()
        said = (
            f"{who} is not of the form {composition}: the nearest of that form is off by {float(off.max()):.1e} "
            f"in an entry ({len(far)} of {x.numel()} entries, the first at index {tuple(far[0].tolist())})."
        )
        try:
            _decomposed(composition, made, who, has_init=True)
        except ValueError:  # as zero, which nothing moves
            raise ValueError(said + _way(composition, x, has_init)) from None
        raise ValueError(f"{said} Take that one, M.compose(**M.decompose(value)) with M = {_code(composition)}.")
    return points


@torch.no_grad()
def _decomposed(composition: Composition, x: Tensor, who: str, has_init: bool) -> dict[str, Tensor]:
    x = at_least_float32(x.detach())
    check_finite(x, who)
    try:
        with exact_products(x.device.type):
            points = composition.decompose(x)
    except NotRealError:
        raise
    except ValueError as error:
        way = _way(composition, x, has_init)
        raise ValueError(f"{who}, shape {tuple(x.shape)}: {without_others(error)}{way}") from error
    check_moves(composition, points, x, who, _way(composition, x, has_init))
    return points


def _way(composition: Composition, x: Tensor, has_init: bool) -> str:
    """What to write for a random one."""
    if has_init:
        return " Pass init='haar' for a random one."
    return f" A random one is M.compose(**M.random_points({tuple(x.shape)})) with M = {_code(composition)}."


def _code(composition: Composition) -> str:
    text = repr(composition)
    return f"{text}()" if text.isidentifier() else text
