"""Coordinates that are none any more: their Parameter becomes the weight, at every place of a tied one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from .decay import delist, living
from .giving import give
from .names import lists_of
from .passes import unwatch
from .schedule import unschedule
from .sharding import check_not_sharded
from .ties import places_in

Place = tuple[nn.Module, str]


def release(places: Sequence[Place]) -> Sequence[Place]:
    """Leave a Parameter with the weight, as it is used, at these places of one tensor and all others. Returns them."""
    owner, attribute = places[0]
    coordinates: Any = lists_of(owner)[attribute]
    original, weight = coordinates.original, getattr(owner, attribute).detach().clone()
    siblings = _siblings(coordinates)
    places = places if len(siblings) == len(places) else places_in(siblings)
    for place in places:
        _take_off(*place)
    give(original, weight)
    for owner, _ in places:
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()
    return places


def give_way(coordinates: Any) -> None:
    """Make `original` the point, under which torch may go on to remove the parametrizations of this place; at all
    others nothing is left of them."""
    original = coordinates.original
    check_not_sharded(original, coordinates[0].name, "Call constraints.unconstrain before fully_shard.")
    point = coordinates.point()
    siblings = _siblings(coordinates)
    if len(siblings) > 1:
        for place in places_in([each for each in siblings if each is not coordinates]):
            _take_off(*place)
    _end(coordinates)
    give(original, point)


def _siblings(coordinates: Any) -> list[Any]:
    return [each for each in living() if each[0] is coordinates[0]]


def _take_off(owner: nn.Module, attribute: str) -> None:
    coordinates: Any = lists_of(owner)[attribute]
    order = coordinates.order
    _end(coordinates)
    parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
    for later in order[order.index(attribute) + 1 :]:
        if later in owner._parameters:
            owner._parameters[later] = owner._parameters.pop(later)
    unwatch(owner)


def _end(coordinates: Any) -> None:
    """A list of torch's own, which computes nothing."""
    unschedule(coordinates)
    delist(coordinates)
    coordinates[0] = nn.Identity()
    coordinates.__class__ = ParametrizationList
