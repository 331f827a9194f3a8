"""A model that is converted while its optimizer has state: it goes on, or says why not before anything moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from constraints import Riemannian, constrain, param_groups
from constraints.optim import (
    Retracted,
    RiemannianAdam,
    RiemannianAdamW,
    RiemannianLBFGS,
    RiemannianMuon,
    RiemannianSGD,
)
from manifolds import Euclidean, Stiefel

OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "Adam": RiemannianAdam,
    "Adam, amsgrad": lambda model: RiemannianAdam(model, amsgrad=True),
    "Adam, fused": lambda model: RiemannianAdam(model, fused=True),
    "AdamW": RiemannianAdamW,
    "SGD": lambda model: RiemannianSGD(model, lr=0.1),
    "SGD, momentum": lambda model: RiemannianSGD(model, lr=0.1, momentum=0.9),
    "SGD, fused": lambda model: RiemannianSGD(model, lr=0.1, momentum=0.9, fused=True),
    "Muon": RiemannianMuon,
    "L-BFGS": lambda model: RiemannianLBFGS(model, 2),
    "NAdam": lambda model: Retracted(torch.optim.NAdam(param_groups(model))),
}


def step(model: nn.Module, optimizer: Any) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        x = torch.linspace(-1, 1, 8, dtype=next(model.parameters()).dtype).reshape(2, 4)
        loss = model(x).square().mean()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)


def same(model: nn.Module, before: dict[str, Any]) -> list[bool]:
    return [torch.equal(value, before[name]) for name, value in model.state_dict().items()]


@pytest.mark.parametrize("part", ["", "1"], ids=["all of it", "one free layer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:RiemannianMuon moves")
def test_a_converted_model_goes_on_or_nothing_moves(kind: str, dtype: torch.dtype, part: str) -> None:
    """Also with other free tensors, as a layer that stays; and the way out of the message leads on."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, "0.weight", Stiefel, Riemannian())
    constrain(model, "1.weight", Euclidean(ndim=2), Riemannian())
    optimizer = OPTIMIZERS[kind](model)
    step(model, optimizer)
    model.get_submodule(part).to(dtype)
    if part:
        model[1].register_forward_pre_hook(lambda _, args: args[0].to(dtype))
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    try:
        step(model, optimizer)
    except (ValueError, TypeError) as error:
        said = str(error)
        assert "dtype" in said or "precision" in said or str(dtype) in said
        assert all(same(model, before))
        assert repr(optimizer.state_dict()["state"]) == repr(state)
        if "load_state_dict" not in said:
            assert kind in ("L-BFGS", "NAdam"), said
            return
        assert "Nothing was changed" in said
        optimizer.load_state_dict(optimizer.state_dict())
        step(model, optimizer)
    assert dtype == torch.bfloat16 or not any(same(model, before))  # small steps are lost to its rounding
