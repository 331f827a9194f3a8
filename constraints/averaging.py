"""Averages of constrained models, as for SWA and EMA, whose weights stay on their manifolds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from manifolds import GeodesicManifold, Manifold, NearestPointManifold, ProductManifold
from manifolds.engine import engine
from manifolds.kernels.precision import exact_products

from .finite import check_finite
from .held import Held, held_once
from .sharding import is_sharded, like, put, whole
from .values import at_least_float32, nearest
from .ways import NEAR, code


class AveragedModel(swa_utils.AveragedModel):
    """A copy of a model whose constrained weights are nearest(avg_fn(average, weight, number averaged)).

    Arguments, and what happens to free tensors, are those of `torch.optim.swa_utils.AveragedModel`, which does the same
    for constrained models once `constraints` is imported. Under both engines the weights are averaged, never the
    coordinates, which mean something only near their base. The model is constrained first, and averaged then.

    Averages that others take of parameters, one by one, are not looked at: those of a Riemannian weight leave the
    manifold, as `report` says, and those of coordinates are right only while no base moves.
    Raises ValueError, before anything is changed, where model and copy are not constrained alike, an average has no
    nearest point, as that of W and -W, or a weight is not finite.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel)
    >>> average = AveragedModel(layer)
    >>> average.update_parameters(layer)
    >>> report(average)[0].ok
    True
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of the model into the averages. Raises ValueError as the class says."""
        _update(self, model)


_torchs: Callable[[Any, nn.Module], None] = swa_utils.AveragedModel.update_parameters


@torch.no_grad()
def _update(average: swa_utils.AveragedModel, model: nn.Module) -> None:
    """`AveragedModel.update_parameters`, that of torch where nothing is constrained."""
    mine, theirs = held_once(average.module), held_once(model)
    if not mine and not theirs:
        _torchs(average, model)
        return
    if _kinds(mine) != _kinds(theirs):
        raise ValueError(
            f"the average holds {_names(mine)}, the model {_names(theirs)}: they must be constrained alike, by "
            f"the same engine. Make a new AveragedModel after constraining."
        )
    points = [_point(each).clone() for each in mine]
    _average(average, points, [_point(each).to(x) for each, x in zip(theirs, points, strict=True)])
    points = _settle(mine, points)
    (parameters, buffers), (new_parameters, new_buffers) = _free(average.module, mine), _free(model, theirs)
    if average.use_buffers:
        _average(average, parameters + buffers, new_parameters + new_buffers)
    else:
        _average(average, parameters, new_parameters)
        for x, y in zip(buffers, new_buffers, strict=True):
            x.copy_(_beside(y, x))
    for each, point in zip(mine, points, strict=True):
        _assign(each, point)
    average.n_averaged += 1


def _average(average: swa_utils.AveragedModel, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Take the new tensors into the old ones, in place, by the function of the average."""
    pairs = [(x.detach(), _beside(y.detach(), x)) for x, y in zip(old, new, strict=True)]
    n = average.n_averaged
    if not n:
        for x, y in pairs:
            x.copy_(y)
    elif average.multi_avg_fn is not None:
        groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for x, y in pairs:
            groups.setdefault((x.device, x.dtype), []).append((x, y))
        for (device, _), group in groups.items():
            average.multi_avg_fn([x for x, _ in group], [y for _, y in group], n.to(device))
    else:
        function = average.avg_fn or swa_utils.get_swa_avg_fn()
        for x, y in pairs:
            x.copy_(function(x, y, n.to(x.device)))


def _beside(y: Tensor, x: Tensor) -> Tensor:
    """y on the device of x, and sharded as x is or not."""
    y = y.to(x.device)
    if is_sharded(x) and is_sharded(y) and x.placements == y.placements:  # type: ignore[attr-defined]
        return y
    return like(whole(y), x)


def _kinds(constrained: Sequence[Held]) -> list[Any]:
    return [(each.manifold, type(each.method), tuple(each.like.shape)) for each in constrained]


def _names(constrained: Sequence[Held]) -> str:
    return ", ".join(f"{each.name} on {each.manifold} by {each.method}" for each in constrained) or "nothing"


def _free(model: nn.Module, constrained: Sequence[Held]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and buffers of the model that are not constrained."""
    held = {id(tensor) for each in constrained for tensor in _kept(each)}
    parameters: list[Tensor] = [p for p in model.parameters() if id(p) not in held]
    return parameters, [b for b in model.buffers() if id(b) not in held]


def _kept(each: Held) -> Sequence[Tensor]:
    """What the module keeps of a constrained tensor."""
    if each.coordinates is None:
        return [each.owner.get_parameter(each.attribute)]
    held: Any = each.coordinates[0]
    return [each.coordinates.original, held.base_point]


def _point(each: Held) -> Tensor:
    """The weight in float32 or better, which is not rounded where the engine keeps more digits."""
    if each.coordinates is None:
        point = at_least_float32(each.weight)
    else:
        held: Any = each.coordinates[0]
        moved = bool(whole(each.coordinates.original).any())
        held.check_base()
        point = held.exact(each.coordinates.original).detach() if moved else held.base
    check_finite(point, each.name)
    return point


def _settle(constrained: Sequence[Held], averages: Sequence[Tensor]) -> list[Tensor]:
    """The nearest points: where all of a kind are near, as after a step of training, by `polish`, products only."""
    kinds: dict[Any, list[int]] = {}
    for i, (each, x) in enumerate(zip(constrained, averages, strict=True)):
        # the layout of a product may count its axes from the first one
        single = i if isinstance(each.manifold, ProductManifold) else None
        kinds.setdefault((each.manifold, x.shape, x.dtype, x.device, single), []).append(i)
    points = list(averages)
    for (manifold, *_), places in kinds.items():
        x = averages[places[0]] if len(places) == 1 else torch.stack([averages[i] for i in places])
        with exact_products(x.device.type):
            if bool((manifold.residual(x) <= NEAR).all()):
                x = engine(manifold).polish(x)
            on = bool(manifold.contains(x).all())
        settled = [x] if len(places) == 1 else x.unbind()
        for i, y in zip(places, settled, strict=True):
            points[i] = y.clone() if on else _nearest(manifold, averages[i], constrained[i].name)
    return points


def _nearest(manifold: Manifold, average: Tensor, name: str) -> Tensor:
    who = f"the average of {name}"
    try:
        return nearest(manifold, average, who)
    except ValueError:  # whose way out is that of a start
        what = f"{who}, shape {tuple(average.shape)}, is not on {manifold}, and no point is nearest to it; nothing was"
        if isinstance(manifold, NearestPointManifold):
            raise ValueError(
                f"{what} averaged. The weights are too far apart, as W and -W: update more often, or make a new "
                f"AveragedModel of the model as it is now."
            ) from None
        stack = f"torch.stack([w1, w2], {-1 - manifold.ndim})"  # w1 may be a batch of points
        mean = f"{code(manifold)}.mean({stack})" if isinstance(manifold, GeodesicManifold) else "its own"
        raise ValueError(f"{what} averaged. Keep copies of such weights, and take a mean of them, {mean}.") from None


def _assign(each: Held, point: Tensor) -> None:
    if each.coordinates is not None:
        each.coordinates.set_point(point)
    else:
        put(each.owner.get_parameter(each.attribute), point)


# an average may be made of a model that is constrained later, or the other way round, so each update has to look
swa_utils.AveragedModel.update_parameters = _update  # type: ignore[assignment,method-assign]
