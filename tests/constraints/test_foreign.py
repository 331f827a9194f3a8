"""A checkpoint of another constraint is told by what arrived, before anything is loaded, and has a way in."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from constraints import Riemannian, Trivialization, constrain, export_state_dict
from constraints.foreign import way_from_another
from manifolds import Isospectral, LowRank, Scaled, SpectralBall, Stiefel

KINDS: dict[str, tuple[Any, Any]] = {
    f"{kind}, {method}": (kind, method)
    for kind in (Stiefel(), Scaled(Stiefel()), LowRank(2), SpectralBall())
    for method in (Trivialization(rebase_every=5), Trivialization(), Riemannian())[kind != Stiefel() :]
}


def made(kind: str) -> Any:
    manifold, method = KINDS[kind]
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return constrain(model, "1.weight", manifold, method, init="haar")


@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_the_keys_of_another_constraint_are_told(there: str, here: str) -> None:
    """Or taken, where they are those of one weight or of the same parts."""
    saved, model = made(there), made(here)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = saved.state_dict()
    same = KINDS[there][0] == KINDS[here][0]
    if same:
        model.load_state_dict(state)
        torch.testing.assert_close(model[1].weight, saved[1].weight)
        return
    if "1.weight" in state:  # one value, which the composition takes, but for a rank that it has not
        if KINDS[here][0] == LowRank(2):
            with pytest.raises(ValueError, match=r"1\.weight"):
                model.load_state_dict(state)
            return
        model.load_state_dict(state)
        torch.testing.assert_close(model[1].weight, saved[1].weight, rtol=0, atol=1e-5)
        return
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"the checkpoint has .* for 1\.weight, which is .* here") as caught:
            model.load_state_dict(state, strict=strict)
    text = str(caught.value)
    arrived = "Trivialization() keeps" if KINDS[there][0] == Stiefel() else "the parts "
    assert arrived in text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)
def test_the_way_in_is_the_exported_model(method: Any) -> None:
    """An orthonormal matrix is one with a gain of 1."""
    saved = made("Stiefel, Trivialization()")
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, "1.weight", Scaled(Stiefel), method)
    with pytest.raises(ValueError, match=r"constraints\.export_state_dict of that model") as caught:
        model.load_state_dict(saved.state_dict())
    assert re.search(r"parts gain, point", str(caught.value))
    model.load_state_dict(export_state_dict(saved))
    torch.testing.assert_close(model[1].weight, saved[1].weight)


class Doubled(nn.Module):
    """Something of one's own on top, with a buffer."""

    by: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * x

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.by


@pytest.mark.parametrize("manifold", [Stiefel(), Scaled(Stiefel()), Isospectral()], ids=str)
def test_what_is_composed_on_top_is_no_part(manifold: Any) -> None:
    layers = [constrain(nn.Linear(4, 4), "weight", manifold) for _ in range(2)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Doubled())
    layers[0].load_state_dict(layers[1].state_dict())
    torch.testing.assert_close(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("wrap", [orthogonal, weight_norm])
def test_what_another_parametrization_saved_is_told(wrap: Any) -> None:
    """Followed to the letter, its weight comes in."""
    theirs: Any = nn.Sequential(nn.Linear(4, 4), wrap(nn.Linear(4, 4)))
    model = made(next(kind for kind in KINDS if kind.startswith("Scaled" if wrap is orthogonal else "LowRank")))
    with pytest.raises(ValueError, match=r"another parametrization for 1\.weight.*remove_parametrizations"):
        model.load_state_dict(theirs.state_dict())
    remove_parametrizations(theirs[1], "weight")
    if wrap is orthogonal:
        model.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(model[1].weight, theirs[1].weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("wrap", [orthogonal, weight_norm])
def test_of_another_parametrization_one_way_out_is_told_everywhere(here: str, wrap: Any) -> None:
    """Whatever holds the weight here; it names the attribute."""
    theirs: Any = nn.Sequential(nn.Linear(4, 4), wrap(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=re.escape(way_from_another("weight"))):
        made(here).load_state_dict(theirs.state_dict())
