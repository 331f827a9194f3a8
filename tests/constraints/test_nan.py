"""NaN that gets into a trivialized weight is told, by what brings it or by the next use, and no base is made of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.accelerator.pretend import pretended
from constraints import constrain, rebase
from manifolds import (
    Euclidean,
    Grassmann,
    Manifold,
    Stiefel,
)
from tests.sets import EVERY

SQUARES = [manifold for manifold in EVERY if manifold != Grassmann()]  # which has one point there
TALL: list[Manifold] = [Stiefel(), Grassmann(), Stiefel() * Euclidean()]


def loaded(key: str, assign: bool) -> Callable[[Any], None]:
    def act(layer: Any) -> None:
        state = copy.deepcopy(layer.state_dict())
        if key == "weight":
            state = {"weight": layer.weight.detach().clone()}
        state[key][-1, 0] = math.nan
        layer.load_state_dict(state, assign=assign)

    return act


def assigned(layer: Any) -> None:
    value = layer.weight.detach().clone()
    value[-1, 0] = math.nan
    layer.weight = value


def written(place: str, data: bool) -> Callable[[Any], None]:
    def act(layer: Any) -> None:
        held = layer.parametrizations.weight
        p = held.original if place == "original" else held[0].base_point
        with torch.no_grad():
            (p.data if data else p)[-1, 0] = math.nan

    return act


def after_a_load(layer: Any) -> None:
    layer.load_state_dict({"weight": layer.weight.detach().clone()}, assign=True)
    written("original", data=True)(layer)


def used(layer: Any, way: Callable[[Any], None]) -> None:
    way(layer)
    rebase(layer)


ORIGINAL, BASE = "parametrizations.weight.original", "parametrizations.weight.0.base_point"
WAYS: dict[str, Callable[[Any], None]] = {
    **{f"load {key}, {assign=}": loaded(key, assign) for key in ("weight", ORIGINAL, BASE) for assign in (False, True)},
    **{f"write {p}, {data=}": written(p, data) for p in ("original", "base") for data in (False, True)},
    "assign": assigned,
    "load, then write": after_a_load,
}


@pytest.mark.parametrize("looks", [True, False], ids=["CPU", "accelerator"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("manifold", "rows"), [*((m, 4) for m in SQUARES), *((m, 8) for m in TALL)], ids=str)
def test_nan_is_told_and_no_base_is_made_of_it(manifold: Manifold, rows: int, way: str, looks: bool) -> None:
    layer: Any = constrain(nn.Linear(4, rows, bias=False), "weight", manifold, init="haar")
    with nullcontext() if looks else pretended():
        before = layer.parametrizations.weight[0].base_point.detach().clone()
        with pytest.raises(ValueError, match=r"NaN|has no value"):
            used(layer, WAYS[way])
        base = layer.parametrizations.weight[0].base_point.detach()
        assert bool(base.isfinite().all()) == ("write base" not in way)
        if "write base" not in way:
            torch.testing.assert_close(base, before)
        layer.weight = manifold.random(rows, 4)  # what the message says
        assert bool(layer.weight.isfinite().all())
