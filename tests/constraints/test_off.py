"""A refusal as off the manifold names a way out that leads back to it, from every place where a value comes in."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import constraints.solve
import manifolds
from constraints import AveragedModel, Riemannian, constrain, param_groups, report
from constraints.optim import Retracted, RiemannianSGD
from manifolds import (
    BlockSpec,
    Manifold,
    NearestPointManifold,
    Oblique,
    Orthogonal,
    PositiveDefinite,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)
from manifolds.compositions import (
    Composition,
    Hurwitz,
    Invertible,
    Isospectral,
    LowRank,
    Orthostochastic,
    PositiveSemidefinite,
    Scaled,
    SpectralBall,
    SpectralSphere,
)
from manifolds.kernels.others import OTHERS

REFLECTION = torch.diag(torch.tensor([1.0, 1, 1, -1]))
VALUES: dict[str, tuple[Manifold, Tensor]] = {
    "a nearest point": (SpecialOrthogonal(), 2 * torch.eye(4)),
    "a reflection": (SpecialOrthogonal(), REFLECTION),
    "half a reflection": (SpecialOrthogonal(), REFLECTION / 2),
    "a reflection of many": (SpecialOrthogonal() ** 2, torch.cat([torch.eye(4), REFLECTION])),
    "no rank": (Stiefel(), torch.zeros(6, 4)),
    "no rank, wide": (Stiefel(), torch.zeros(3, 5)),
    "no rank of many": (Orthogonal() ** 3, torch.zeros(12, 4)),
    "no directions": (Sphere(ndim=2) ** 3, torch.zeros(12, 4)),
    "an open set": (PositiveDefinite(), -torch.eye(4)),
    "an open factor": (PositiveDefinite() * Orthogonal(), torch.cat([-torch.eye(4), torch.eye(4)])),
}
CODE = r"(\S[^;]*?\))"


class Layer(nn.Module):
    """A weight of any shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


class Off:
    """A layer that is held on the manifold, the value that is off it, and what is refused."""

    def __init__(self, manifold: Manifold, value: Tensor) -> None:
        self.manifold, self.value = manifold, value
        self.texts: list[str] = []

    def layer(self, method: Any = None) -> Any:
        return constrain(Layer(self.value.shape), "weight", self.manifold, *filter(None, [method]), init="haar")

    def refused(self, act: Any, has_init: bool = False) -> str:
        self.texts.append(refused(act, has_init))
        return self.texts[-1]

    def evaluated(self, code: str, **names: Any) -> Any:
        return eval(code, {**vars(manifolds), "value": self.value, "weight": self.value, **names})


def said(text: str, has_init: bool = False) -> str:
    """The text, which names an option of constrain only where there is one, or where it says to call constrain."""
    assert has_init or "constrain" in text or "init=" not in text, text
    return text


def alone(text: str) -> str:
    """The text, which gives the way of who called it, and not that of the manifold beside it."""
    assert OTHERS.removesuffix(".") not in text, text
    return text


def refused(act: Any, has_init: bool = False) -> str:
    with pytest.raises(ValueError, match=r"is not on|determinant -1|no nearest|deficient rank") as caught:
        act()
    return alone(said(str(caught.value), has_init))


def only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return str(found)


def by_none(off: Off) -> Any:
    layer = Layer(off.value.shape)
    with torch.no_grad():
        layer.weight.copy_(off.value)
    if off.value.trace() == 8:  # whose nearest rotation is taken
        return constrain(layer, "weight", off.manifold)
    text = off.refused(lambda: constrain(layer, "weight", off.manifold), has_init=True)
    return constrain(layer, "weight", off.manifold, init=re.findall(r"init='(\w+)'", text)[0])


def by_init(off: Off) -> Any:
    layer = Layer(off.value.shape)
    text = off.refused(lambda: constrain(layer, "weight", off.manifold, init=off.value), has_init=True)
    return constrain(layer, "weight", off.manifold, init=off.evaluated(only(r"Pass init=(.*?) (?:to take|for)", text)))


def by_function(off: Off) -> Any:
    layer = Layer(off.value.shape)
    text = off.refused(lambda: constrain(layer, "weight", off.manifold, init=lambda w: off.value), has_init=True)
    code = only(r"Let the function return (?:a point, as )?" + CODE + r"(?:, or|\. |\.$)", text)
    return constrain(layer, "weight", off.manifold, init=lambda w: off.evaluated(code))


def by_assignment(off: Off) -> Any:
    layer = off.layer()
    text = off.refused(lambda: setattr(layer, "weight", off.value))
    layer.weight = off.evaluated(
        only(r"Assign (?:a point, as module.weight = )?" + CODE + r"(?: to take|\. |\.$)", text)
    )
    return layer


def by_loading(off: Off, method: Any = None) -> Any:
    layer, state = off.layer(method), {"weight": off.value}
    code = only(r"(state\['weight'\] = .*?\))\. ", off.refused(lambda: layer.load_state_dict(state)))
    exec(code, {**vars(manifolds), "state": state})
    layer.load_state_dict(state)
    return layer


def by_base(off: Off) -> Any:
    layer = off.layer()
    with torch.no_grad():
        layer.parametrizations.weight[0].base_point.copy_(off.value)
    code = only(r"module\.weight = " + CODE + r"(?: or |;)", off.refused(lambda: layer.weight))
    layer.weight = off.evaluated(code)
    return layer


def by_nearest(off: Off) -> Any:
    """Called by a user, of sets that have it."""
    if not isinstance(off.manifold, NearestPointManifold):
        return
    try:
        off.manifold.nearest(off.value)
    except ValueError as error:
        # no shape: a kernel sees blocks, and wide matrices from the side
        text = only(r"\. (Give .*)$", said(str(error)))
        if text != "Give others, as the method random of the same set draws them.":
            pytest.fail(text)
        assert off.manifold.contains(off.manifold.nearest(off.manifold.random(off.value.shape))).all()


def by_average(off: Off) -> Any:
    """Of points whose mean is the value, to rounding, or nothing like it."""
    if not bool(off.value.eq(0).all()):
        return
    layer = off.layer()
    first, average = layer.weight.detach().clone(), AveragedModel(layer)
    average.update_parameters(layer)
    layer.weight = -first
    off.refused(lambda: average.update_parameters(layer))


def by_group(off: Off) -> Any:
    p = nn.Parameter(off.value.clone())
    code = only(r"weight\.copy_\(" + CODE + r"\)\.$", off.refused(lambda: RiemannianSGD([group(p, off)], lr=0.1)))
    with torch.no_grad():
        p.copy_(off.evaluated(code))
    return RiemannianSGD([group(p, off)], lr=0.1)


def group(p: Tensor, off: Off) -> dict[str, Any]:
    return {"params": [p], "manifold": off.manifold}


def by_writing(off: Off) -> Any:
    layer = off.layer(Riemannian())
    optimizer = RiemannianSGD(layer, lr=0.1)
    with torch.no_grad():
        layer.weight.copy_(off.value)
    layer.weight.grad = torch.zeros_like(layer.weight)
    text = off.refused(optimizer.step)
    code = only(r"\.copy_\((.*?)\) under", text)
    init = re.findall(r"init='(\w+)'", text)
    constrain(layer, "weight", off.manifold, Riemannian(), init=init[0] if init else None)
    assert report(layer)[0].ok
    with torch.no_grad():
        layer.weight.copy_(off.evaluated(code))
    optimizer.step()
    return layer


def by_start(off: Off) -> Any:
    def f(x: Tensor) -> Tensor:
        return x.square().sum()

    text = off.refused(lambda: constraints.solve.minimize(f, off.value, off.manifold, max_steps=1))
    code = only(r"(?:Give (?!its)|such as )" + CODE + r"(?:, or|\.$)", text)
    constraints.solve.minimize(f, tuple(off.value.shape), off.manifold, max_steps=1)
    return constraints.solve.minimize(f, off.evaluated(code, x0=off.value), off.manifold, max_steps=1)


PLACES: dict[str, Any] = {
    "constrain": by_none,
    "init": by_init,
    "function": by_function,
    "assignment": by_assignment,
    "checkpoint": by_loading,
    "checkpoint, Riemannian": lambda off: by_loading(off, Riemannian()),
    "base": by_base,
    "nearest": by_nearest,
    "average": by_average,
    "group": by_group,
    "in place": by_writing,
    "x0": by_start,
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", PLACES)
def test_the_way_out_leads_back(place: str, value: str) -> None:
    """Followed to the letter it ends on the manifold: with the nearest point, or another where none is nearest."""
    done = PLACES[place](Off(*VALUES[value]))
    if isinstance(done, nn.Module):
        assert report(done)[0].ok


def doubled(x: Tensor, *places: Any) -> Tensor:
    for place in places:
        x[place] *= 2
    return x


SOME: dict[str, tuple[Manifold, Tensor, str]] = {
    "one point": (Stiefel(), 2 * torch.eye(4), ""),
    "a block": (
        Orthogonal() ** 3,
        doubled(torch.eye(4).repeat(3, 1), slice(4, 8)),
        "(1 of 3 points, the first in block 1)",
    ),
    "rows": (Sphere(), doubled(torch.eye(6), 2, 5), "(2 of 6 points, the first at index 2)"),
    "a stack": (
        Stiefel(),
        doubled(torch.eye(4).repeat(2, 3, 1, 1), (1, 0), (1, 2)),
        "(2 of 6 points, the first at index (1, 0))",
    ),
    "blocks of a stack": (
        ProductManifold((Stiefel(), Orthogonal()), BlockSpec(rows=2, axis=-2)),
        doubled(torch.eye(4).repeat(3, 2, 1), (slice(1, 3), slice(4, 8))),
        "(2 of 6 points, the first in block 1 at index 1)",
    ),
    "NaN": (
        Orthogonal() ** 2,
        torch.cat([torch.eye(4), torch.full((4, 4), torch.nan)]),
        "(1 of 2 points, the first in block 1)",
    ),
    "an open set": (
        PositiveDefinite() ** 2,
        torch.cat([torch.eye(4), -torch.eye(4)]),
        "(1 of 2 points, the first in block 1)",
    ),
}


@pytest.mark.parametrize("value", SOME)
@pytest.mark.parametrize(
    "place",
    ["init", "function", "assignment", "checkpoint", "checkpoint, Riemannian", "base", "group", "in place", "x0"],
)
def test_which_of_many_points_are_off_is_told(place: str, value: str) -> None:
    """By number and place, whatever holds them."""
    manifold, x, which = SOME[value]
    if value == "NaN" and place not in ("base", "group", "in place", "x0"):
        return  # which says how many entries are
    off = Off(manifold, x)
    PLACES[place](off)
    assert re.findall(r"\(\d+ of \d+ points, the first.*?\)+", off.texts[0]) == [which] * bool(which)


@pytest.mark.parametrize("manifold", [Stiefel(), Scaled(Stiefel()), Isospectral()], ids=str)
def test_which_entries_are_nan_is_told(manifold: Any) -> None:
    layer: Any = constrain(nn.Linear(4, 4), "weight", manifold)
    x = layer.weight.detach().clone()
    x[2, 1] = x[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"2 of 16 in shape \(4, 4\), the first at index \(2, 1\)"):
        layer.weight = x


def test_which_entries_are_of_no_such_form_is_told() -> None:
    layer: Any = constrain(nn.Linear(4, 4), "weight", Scaled(Stiefel()) ** 2, init=torch.eye(4))
    x = torch.eye(4)
    x[3, 2] = 1
    with pytest.raises(ValueError, match=r"\(\d of 16 entries, the first at index \([23], [23]\)\)"):
        layer.weight = x


@pytest.mark.parametrize("place", ["base", "group", "in place"])
def test_nothing_is_nearest_to_nan(place: str) -> None:
    done = PLACES[place](Off(Oblique(), torch.full((6, 4), torch.nan)))
    if isinstance(done, nn.Module):
        assert report(done)[0].ok


def test_a_part_is_told_by_its_own_name() -> None:
    """Of a composed weight, and the way out is that of the part."""
    gru: Any = constrain(nn.GRU(4, 4), "weight_hh_l0", Scaled(Stiefel) ** 3, init="haar")
    module = gru.parametrizations.weight_hh_l0[0]
    for p in module.parameters():
        if not p.requires_grad:
            p.mul_(1.3)
    text = refused(lambda: gru(torch.ones(2, 1, 4)))
    module.point = eval(only(r"module\.point = " + CODE + r"(?: or |;)", text), dict(vars(manifolds)))
    gru(torch.ones(2, 1, 4))
    assert report(gru)[0].ok


COMPOSITIONS: dict[str, Composition] = {
    str(each): each
    for each in (
        LowRank(2),
        SpectralBall(),
        SpectralSphere(),
        Isospectral(),
        Scaled(SpecialOrthogonal()),
        PositiveSemidefinite(),
        Invertible(),
        Hurwitz(),
        Orthostochastic(),
        Scaled(Stiefel()) ** 2,
    )
}
VALUES_OF_PARTS = {
    "zero": torch.zeros(4, 4),
    "negative": -torch.eye(4),
    "a reflection": REFLECTION,
    "the identity": torch.eye(4),
    "any": torch.arange(16.0).reshape(4, 4).sin(),
}


@pytest.mark.parametrize("value", VALUES_OF_PARTS)
@pytest.mark.parametrize("kind", COMPOSITIONS)
@pytest.mark.parametrize("place", ["assignment", "checkpoint"])
def test_the_way_out_leads_back_to_a_composition(place: str, kind: str, value: str) -> None:
    """Where a value is refused; an assignment and a checkpoint have no init."""
    layer: Any = constrain(nn.Linear(4, 4, bias=False), "weight", COMPOSITIONS[kind], init="haar")

    def give(x: Tensor) -> None:
        if place == "assignment":
            layer.weight = x
        else:
            layer.load_state_dict({"weight": x})

    x = VALUES_OF_PARTS[value]
    try:
        give(x)
    except ValueError as error:
        (way, name) = re.findall(r"(M\.compose\(.*\)) with M = (.*)\.$", alone(said(str(error))))[0]
        names = {**vars(manifolds), **vars(manifolds.compositions)}
        give(eval(way, {"M": eval(name, names), "value": x}))
    assert report(layer)[0].ok


@pytest.mark.parametrize("value", VALUES_OF_PARTS)
@pytest.mark.parametrize("kind", COMPOSITIONS)
def test_what_has_no_parts_is_told_what_a_user_can_do(kind: str, value: str) -> None:
    """decompose, called by a user, has no init; constrain has, and a random start is one."""
    x, composition = VALUES_OF_PARTS[value], COMPOSITIONS[kind]
    try:
        composition.decompose(x)
    except ValueError as error:
        said(str(error))
    layer: Any = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(x)
    try:
        constrain(layer, "weight", composition)
    except ValueError as error:
        way: Any = only(r"Pass init='(\w+)' for a random one", alone(str(error)))
        constrain(layer, "weight", composition, init=way)
    assert report(layer)[0].ok


def test_a_retracted_that_came_too_early_is_made_again_as_it_says() -> None:
    model = nn.Linear(4, 4)
    optimizer: Any = Retracted(torch.optim.SGD(param_groups(model), lr=0.1))
    constrain(model, "weight", Stiefel, Riemannian())
    model(torch.randn(3, 4)).square().sum().backward()
    with pytest.raises(ValueError, match="was made before it was") as caught:
        optimizer.step()
    before = model.weight.detach().clone()
    code = only(r"after constrain: (.*\))\.$", str(caught.value)).replace("...", "lr=0.1")
    names = {"model": model, "param_groups": param_groups, "Retracted": Retracted, "SGD": torch.optim.SGD}
    eval(code, names).step()
    assert report(model)[0].ok
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("name", ["0", "lambda", "weight"])
@pytest.mark.parametrize("place", ["assignment", "base", "in place", "another parametrization"])
def test_a_way_out_is_code_whatever_the_name(place: str, name: str) -> None:
    """Of a ParameterList, whose names are numbers."""
    module: Any = nn.ParameterList([torch.eye(4)]) if name == "0" else nn.Module()
    module.register_parameter(name, nn.Parameter(torch.eye(4)))
    constrain(module, name, Stiefel)
    made = module.parametrizations[name]
    value: Any = Stiefel().random(4, 4)
    if place == "assignment":
        text = refused(lambda: setattr(module, name, torch.zeros(4, 4)))
        code = re.findall(r"Assign a point, as (.*\))\.$", text)[0]
    elif place == "base":
        with torch.no_grad():
            made[0].base_point.zero_()
        code = re.findall(r"Assign a point, (.*?\));", refused(lambda: getattr(module, name)))[0]
    elif place == "in place":
        with torch.no_grad():
            getattr(module, name).zero_()
        with pytest.raises(ValueError, match="changed in place") as caught:
            getattr(module, name)
        code = re.findall(r"instead, (.*), or constrain", str(caught.value))[0]
    else:
        with pytest.raises(ValueError, match="of that tensor alone") as caught:
            made[0].right_inverse(value)
        code = re.findall(r"assign it, (.*)\.$", str(caught.value))[0]
    exec(code, {**vars(manifolds), "module": module, "other": module, "value": value})
    assert report(module)[0].ok
