"""What an error tells a reader to write works as it is written."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from constraints import BlockSpec, Riemannian, Trivialization, constrain, report
from constraints.method import Method
from constraints.optim import RiemannianSGD
from manifolds import ProductManifold, SpecialOrthogonal, Sphere, Stiefel

# Ways out that are code ---------------------------------------------------------------------------------------------

PROJECTED = {
    "a class": (Stiefel, (6, 4)),
    "an option": (Stiefel(metric="canonical"), (6, 4)),
    "rotations": (SpecialOrthogonal, (4, 4)),
    "a power": (Stiefel**3, (12, 4)),
    "a product": (Stiefel * Sphere, (12, 4)),
    "a layout": (ProductManifold((Stiefel, Sphere), BlockSpec(rows=(8, 4))), (12, 4)),
    "one factor": (Stiefel**1, (6, 4)),
}
NAMES = {each.__name__: each for each in (Stiefel, SpecialOrthogonal, Sphere, ProductManifold, BlockSpec)}
PROJECTION = re.compile(r"(?:init=|Assign |\] = |copy_\(|copy )(.*?)\.nearest\(")


def put_off(place: str, layer: nn.Module, manifold: Any, value: torch.Tensor) -> None:
    """Give a value that is not on the manifold, in one of the places where it is refused."""
    if place == "init":
        constrain(layer, "weight", manifold, init=value)
    elif place == "assignment":
        layer.weight = value
    elif place == "checkpoint":
        layer.load_state_dict({"weight": value}, strict=False)
    elif place == "in place":
        optimizer = RiemannianSGD(layer, lr=0.1)
        with torch.no_grad():
            layer.weight.copy_(value)
        optimizer.step()
    else:
        RiemannianSGD([{"params": [nn.Parameter(value)], "manifold": manifold}], lr=0.1)


@pytest.mark.parametrize("case", PROJECTED)
@pytest.mark.parametrize("place", ["init", "assignment", "checkpoint", "in place", "group"])
def test_the_nearest_point_is_written_as_python(place: str, case: str) -> None:
    manifold, shape = PROJECTED[case]
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(shape[1], shape[0])
    method = Trivialization() if place in ("assignment", "checkpoint") else Riemannian()
    if place != "init":
        constrain(layer, "weight", manifold, method)
    with pytest.raises(ValueError, match="nearest") as caught:
        put_off(place, layer, manifold, value)
    (code,) = PROJECTION.findall(str(caught.value))
    written = eval(code, NAMES)
    assert written == (manifold() if isinstance(manifold, type) else manifold)
    assert bool(written.contains(written.nearest(value)).all())


def test_a_checkpoint_off_the_manifold_is_projected_as_the_error_says() -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", Stiefel**3)
    state = nn.GRU(3, 4).state_dict()
    with pytest.raises(ValueError, match="Load it before constrain") as caught:
        gru.load_state_dict(state)
    (code,) = re.findall(r"project it: (.*\))\.", str(caught.value))
    exec(code, {"state": state, "Stiefel": Stiefel})
    gru.load_state_dict(state)


# A reflection is not turned silently --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
def test_a_present_reflection_is_not_turned_into_a_rotation(method: Method) -> None:
    """The nearest rotation to an orthogonal matrix of determinant -1 is at a distance of 2."""
    reflection = torch.diag(torch.tensor([1.0, 1, 1, -1]))
    layer = nn.Linear(4, 4)
    for rounding in (0, 1e-4):
        with torch.no_grad():
            layer.weight.copy_(reflection + rounding)
        with pytest.raises(
            ValueError, match=r"1 of 1 orthogonal matrices with determinant -1.*Orthogonal ad"
        ) as caught:
            constrain(layer, "weight", SpecialOrthogonal, method)
        assert torch.equal(layer.weight, reflection + rounding)
    (code,) = re.findall(r"pass init=(\S+)", str(caught.value))
    constrain(layer, "weight", SpecialOrthogonal, method, init=eval(code, NAMES))
    assert report(layer)[0].determinants == ("+",)


def test_only_the_rotations_of_a_product_are_asked_for_their_sign() -> None:
    layer = nn.Linear(4, 8, bias=False)
    rotation, reflection = torch.eye(4), torch.diag(torch.tensor([1.0, 1, 1, -1]))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([reflection, rotation]))
    with pytest.raises(ValueError, match=r"1 of 1 orthogonal .*init=\(SpecialOrthogonal \* Stiefel\)\.nearest"):
        constrain(layer, "weight", SpecialOrthogonal * Stiefel)
    constrain(layer, "weight", Stiefel * SpecialOrthogonal)


def test_an_ordinary_weight_of_negative_determinant_takes_the_nearest_rotation() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.diag(torch.tensor([1.0, 1, 1, -1])))
    constrain(layer, "weight", SpecialOrthogonal)
    assert report(layer)[0].determinants == ("+",)
