"""Averages of constrained models, as for SWA and EMA, whose weights stay on their manifolds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import swa_utils

from .held import Held, held_once
from .precision import exact_products
from .values import NEAR, at_least_float32, check_finite, nearest


class AveragedModel(swa_utils.AveragedModel):
    """A copy of a model whose constrained weights are nearest(avg_fn(average, weight, number averaged)).

    Arguments, and what happens to free tensors, are those of `torch.optim.swa_utils.AveragedModel`; one that is made
    of a constrained model becomes one of these by itself. Under both engines the weights are averaged, never the
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

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of the model into the averages. Raises ValueError as the class says."""
        mine, theirs = held_once(self.module), held_once(model)
        if _kinds(mine) != _kinds(theirs):
            raise ValueError(
                f"the average holds {_names(mine)}, the model {_names(theirs)}: they must be constrained alike, by "
                f"the same engine. Make a new AveragedModel after constraining."
            )
        if not mine:
            super().update_parameters(model)
            return
        points = self._averages(mine, theirs)
        free, new = _free(self.module, mine), _free(model, theirs)
        if any(True for _ in free.parameters()) or (self.use_buffers and any(True for _ in free.buffers())):
            # by torch's own, which never sees coordinates
            rest = swa_utils.AveragedModel(nn.Module(), None, self.avg_fn, self.multi_avg_fn, self.use_buffers)
            rest.module, rest.n_averaged = free, self.n_averaged
            rest.update_parameters(new)
        else:
            for average, value in zip(free.buffers(), new.buffers(), strict=True):
                average.copy_(value)
            self.n_averaged += 1
        for each, point in zip(mine, points, strict=True):
            _assign(each, point)

    def _averages(self, mine: Sequence[Held], theirs: Sequence[Held]) -> list[Tensor]:
        """The averaged points, by an AveragedModel of torch's own."""
        averages = swa_utils.AveragedModel(_list(mine), avg_fn=self.avg_fn, multi_avg_fn=self.multi_avg_fn)
        averages.n_averaged.copy_(self.n_averaged)
        averages.update_parameters(_list(theirs))
        return [_settle(each, p.detach()) for each, p in zip(mine, averages.module.parameters(), strict=True)]


def _kinds(constrained: Sequence[Held]) -> list[Any]:
    return [(each.manifold, type(each.method), tuple(each.like.shape)) for each in constrained]


def _names(constrained: Sequence[Held]) -> str:
    return ", ".join(f"{each.name} on {each.manifold} by {each.method}" for each in constrained) or "nothing"


def _list(constrained: Sequence[Held]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(_point(each), requires_grad=False) for each in constrained)


def _free(model: nn.Module, constrained: Sequence[Held]) -> nn.Module:
    """The tensors of the model that are not constrained, in their order, shared."""
    held = {id(tensor) for each in constrained for tensor in _kept(each)}
    free = nn.Module()
    for i, p in enumerate(p for p in model.parameters() if id(p) not in held):
        free.register_parameter(f"p{i}", p)
    for i, b in enumerate(b for b in model.buffers() if id(b) not in held):
        free.register_buffer(f"b{i}", b)
    return free


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
        point = held.exact(each.coordinates.original).detach()
    check_finite(point, each.name)
    return point


def _settle(each: Held, x: Tensor) -> Tensor:
    """The nearest point: where x is near, as after a step of training, by `polish`, which is products only."""
    with exact_products(x.device.type):
        if bool((each.manifold.residual(x) <= NEAR).all()):
            x = each.manifold.polish(x)
        on = bool(each.manifold.contains(x).all())
    return x if on else nearest(each.manifold, x, f"the average of {each.name}")


def _assign(each: Held, point: Tensor) -> None:
    if each.coordinates is not None:
        each.coordinates.set_point(point)
    else:
        each.weight.copy_(point)


def _take_over(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Make torch's AveragedModel one of these when it is given a constrained model."""
    if not isinstance(module, swa_utils.AveragedModel) or isinstance(module, AveragedModel):
        return
    if submodule is not None and held_once(submodule):
        if type(module) is not swa_utils.AveragedModel:
            raise ValueError(
                f"{type(module).__name__} would average constrained tensors off their manifolds. Derive it from "
                f"constraints.AveragedModel."
            )
        module.__class__ = AveragedModel


register_module_module_registration_hook(_take_over)
