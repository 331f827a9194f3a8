"""Each row of the table of docs/promises.md, with the bound that stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import AveragedModel, Riemannian, Trivialization, constrain, export_state_dict, unconstrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel, retractions, tolerance
from tests.promises import PROMISED, off

SQUARE = [(3, 3), (10, 10)]
SHAPES = [*SQUARE, (8, 4), (4, 8)]
MANIFOLDS: list[tuple[Manifold, list[Any]]] = [
    *((Stiefel(retraction=getattr(retractions, name)), SHAPES) for name in ("polar", "cayley", "qr", "exp")),
    (Stiefel("canonical"), SHAPES),
    (Orthogonal(), SQUARE),
    (SpecialOrthogonal(), SQUARE),
    (Sphere(), SHAPES),
    (Stiefel() * Euclidean() * Sphere(), [(12, 4)]),
]
DTYPES = [torch.float32, torch.float64, torch.complex64]
METHODS = {"trivialized": Trivialization(), "Riemannian": Riemannian()}
WAYS: dict[str, Any] = {
    "trivialized, Adam": lambda model, lr: torch.optim.Adam(model.parameters(), lr),
    "trivialized, SGD": lambda model, lr: torch.optim.SGD(model.parameters(), lr, momentum=0.9),
    "Riemannian, Adam": RiemannianAdam,
    "Riemannian, SGD": lambda model, lr: RiemannianSGD(model, lr, momentum=0.9),
}


def test_each_row_of_the_table_is_tried_somewhere() -> None:
    assert len(PROMISED) == 10
    text = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert set(re.findall(r'PROMISED\["([^"]+)"\]', text)) == set(PROMISED)


def model_of(manifold: Manifold, shapes: list[Any], way: str, dtype: torch.dtype) -> nn.Module:
    """A module whose parameters are points of these shapes."""
    model = nn.Module()
    for i, shape in enumerate(shapes):
        model.register_parameter(f"w{i}", nn.Parameter(manifold.random(*shape, dtype=dtype)))
    return constrain(model, "w*", manifold, METHODS[way.partition(",")[0]])


def gradient(shape: Any, dtype: torch.dtype, kind: str) -> Tensor:
    """About as long as the point; of rank one where it says so."""
    g = torch.randn(*shape, dtype=dtype)
    g = g[..., :1] @ g[..., :1, :] if kind == "rank one" else g
    return g / g.norm() * min(shape[-2:]) ** 0.5


def train(
    manifold: Manifold, shapes: list[Any], way: str, dtype: torch.dtype, lr: float, kind: str, steps: int
) -> float:
    """The worst residual of any weight at any step, in eps."""
    model = model_of(manifold, shapes, way, dtype)
    optimizer, worst = WAYS[way](model, lr), 0.0
    gradients = [gradient(shape, dtype, kind) for shape in shapes]
    for _ in range(steps):
        if kind != "repeated":
            gradients = [gradient(shape, dtype, kind) for shape in shapes]
        optimizer.zero_grad()
        weights = [getattr(model, f"w{i}") for i in range(len(shapes))]
        torch.stack([(w * g.conj()).sum().real for w, g in zip(weights, gradients, strict=True)]).sum().backward()
        optimizer.step()
        worst = max(worst, *(off(getattr(model, f"w{i}"), manifold) for i in range(len(shapes))))
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("manifold", "shapes"), MANIFOLDS, ids=lambda value: str(value) if len(str(value)) < 60 else ""
)
def test_a_trained_weight(manifold: Manifold, shapes: list[Any], way: str, dtype: torch.dtype) -> None:
    for lr, kind in ((1e-3, "random"), (0.1, "repeated"), (1.0, "rank one")):
        assert train(manifold, shapes, way, dtype, lr, kind, 2) <= PROMISED["a trained weight"], (lr, kind)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("manifold", [Stiefel(), SpecialOrthogonal(), Sphere()], ids=repr)
def test_a_complex_trained_weight(manifold: Manifold, way: str) -> None:
    for dtype in (torch.complex64, torch.complex128):
        worst = train(manifold, SQUARE, way, dtype, 0.1, "random", 3)
        assert worst <= PROMISED["a trained weight"]


@pytest.mark.parametrize("retraction", ["polar", "cayley", "qr", "exp"])
@pytest.mark.parametrize("way", ["trivialized, Adam", "Riemannian, Adam"])
def test_a_large_trained_weight(way: str, retraction: str) -> None:
    """In float64, which has the least to spare, by two steps: one leaves the start, one begins beside it."""
    manifold = Stiefel(retraction=getattr(retractions, retraction))
    shapes = [(256, 256), (512, 32), (32, 512), *([(1024, 1024)] if retraction == "polar" else [])]
    worst = train(manifold, shapes, way, torch.float64, 1e-3, "random", 2)
    assert worst <= PROMISED["a trained weight"]


def test_contains_says_yes_up_to_there() -> None:
    for dtype in DTYPES:
        eps = torch.finfo(dtype).eps
        assert tolerance(dtype) == PROMISED["a tensor that is contained"] * eps
        x = torch.eye(3, dtype=dtype)
        for residual, inside in ((0.9, True), (1.1, False), (torch.nan, False)):
            near = x * (1 + residual * tolerance(dtype)) ** 0.5
            assert bool(Stiefel().contains(near)) is inside


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint(method: str) -> None:
    bound = PROMISED["a checkpoint, loaded"]
    for dtype in (torch.float32, torch.float64):
        model, other = (constrain(nn.Linear(16, 16, dtype=dtype), "weight", Stiefel, METHODS[method]) for _ in "ab")
        point = (Stiefel().random(16, 16, dtype=dtype)) * (1 + 60 * torch.finfo(dtype).eps)
        model.load_state_dict({"weight": point, "bias": model.bias.detach()})
        assert torch.equal(model.weight, point)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.weight, point)
        model.load_state_dict({"weight": point * (1 + 3e-4), "bias": model.bias.detach()})
        assert off(model.weight) <= bound
        kept = model.weight.detach().clone()
        with pytest.raises(ValueError, match="not on Stiefel"):
            model.load_state_dict({"weight": point * 1.01, "bias": model.bias.detach()})
        assert torch.equal(model.weight, kept)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_changes_its_engine(method: str) -> None:
    layer = constrain(nn.Linear(16, 16), "weight", Stiefel, METHODS[method])
    for engine in (*METHODS.values(), METHODS[method]):
        before = layer.weight.detach().clone()
        assert torch.equal(export_state_dict(layer)["weight"], before)
        unconstrain(layer, "weight")
        assert torch.equal(layer.weight, before)
        constrain(layer, "weight", Stiefel, engine)
        assert torch.equal(layer.weight, before)
        assert off(layer.weight) <= PROMISED["a weight that goes from one engine to the other, or to none"]


@pytest.mark.parametrize("way", WAYS)
def test_an_average(way: str) -> None:
    layer = constrain(nn.Linear(16, 16), "weight", Stiefel, METHODS[way.partition(",")[0]])
    average, optimizer = AveragedModel(layer), WAYS[way](layer, 0.1)
    for _ in range(4):
        layer(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        average.update_parameters(layer)
        assert off(average.module.weight) <= PROMISED["the average of an `AveragedModel`"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_weight_in_half_precision(way: str, dtype: torch.dtype) -> None:
    # without a bias, whose second moment torch keeps in float16: that of a small gradient is 0, and the step infinite
    layer = constrain(nn.Linear(16, 16, bias=False), "weight", Stiefel, METHODS[way.partition(",")[0]]).to(dtype)
    optimizer = WAYS[way](layer, 0.01)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(4, 16, dtype=dtype)).square().mean().backward()
        optimizer.step()
        assert off(layer.weight) <= PROMISED["a weight in half precision"]
        if way.startswith("trivialized"):
            behind = layer.parametrizations.weight[0].base_point
        else:
            behind = optimizer.state[layer.weight]["master"]
        assert behind.dtype == torch.float32
        assert off(behind) <= PROMISED["the float32 behind a weight in half precision"]
