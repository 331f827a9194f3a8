"""report: what holds, as records and as a table."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import AveragedModel, BlockSpec, Riemannian, Trivialization, constrain, report, unconstrain
from constraints.optim import RiemannianSGD
from manifolds import (
    Euclidean,
    Manifold,
    Orthogonal,
    ProductManifold,
    Scaled,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    tolerance,
)


def model() -> nn.Module:
    net = nn.ModuleDict({"gru": nn.GRU(3, 4), "out": nn.Linear(4, 6), "free": nn.Linear(4, 4)})
    constrain(net, "gru.weight_hh_l0", Stiefel * SpecialOrthogonal * Euclidean, Riemannian())
    constrain(net, "out.weight", Stiefel, layout=BlockSpec(rows=(2, 4)))
    return net


def test_one_record_for_each_constraint() -> None:
    gru, out = report(model())
    assert (gru.name, gru.shape, gru.method) == ("gru.weight_hh_l0", (12, 4), Riemannian())
    assert gru.manifold == Stiefel * SpecialOrthogonal * Euclidean
    assert (out.name, out.shape, out.method) == ("out.weight", (6, 4), Trivialization())
    assert out.layout == BlockSpec(rows=(2, 4))
    assert out.dtype == torch.float32
    assert (len(gru.residuals), len(out.residuals)) == (3, 2)
    assert gru.ok
    assert out.ok
    assert max(*gru.residuals, *out.residuals) < 1e-5
    assert dataclasses.asdict(gru)["name"] == gru.name


def test_determinants_are_those_of_the_blocks() -> None:
    net = model()
    with torch.no_grad():
        net["gru"].weight_hh_l0[0].neg_()
    gru, out = report(net)
    signs = [torch.linalg.det(block).sign().item() for block in net["gru"].weight_hh_l0.detach().chunk(3)]
    assert list(gru.determinants) == ["+" if signs[0] > 0 else "-", "+", ""]
    last = torch.linalg.det(net["out"].weight[2:].detach())
    assert list(out.determinants) == ["", "+" if last > 0 else "-"]


def test_a_batch_of_both_signs_says_so() -> None:
    stack = nn.Module()
    stack.w = nn.Parameter(torch.stack([torch.eye(3), -torch.eye(3)]))
    (row,) = report(constrain(stack, "w", Orthogonal))
    assert row.determinants == ("+-",)


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_a_composed_product_has_the_signs_of_the_product(batch: tuple[int, ...], method: Any) -> None:
    """A positive gain changes no determinant; what has several factors in one stack says each."""
    gates = torch.eye(4).repeat(*batch, 3, 1)
    for start in (0, 8):
        gates[..., start, :] *= -1
    rows = []
    for manifold in (Stiefel**3, Scaled(Stiefel) ** 3):
        stack = nn.Module()
        stack.w = nn.Parameter(gates.clone())
        rows.append(report(constrain(stack, "w", manifold, method, layout=BlockSpec(rows=3, axis=-2))))
    (plain,), (_, gain, point) = rows
    assert point.determinants == plain.determinants == ("-", "+", "-")
    assert len(point.residuals) == len(gain.residuals) == len(plain.residuals) == 3
    assert point.ok


def test_a_composed_product_of_unequal_blocks_has_the_signs_of_its_own() -> None:
    linear = nn.Linear(3, 12)
    with torch.no_grad():
        linear.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3), torch.eye(3), 2 * torch.eye(3)]))
    constrain(linear, "weight", Orthogonal * Orthogonal * Scaled(Orthogonal) ** 2)
    signs = {record.name: record.determinants for record in report(linear)}
    assert signs["weight.point0"] == ("+", "-")
    assert signs["weight.point1"] == ("+", "+")


@pytest.mark.parametrize("factor", [0, 1, 2])
def test_residuals_are_per_factor_and_the_worst(factor: int) -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", Stiefel**3, Riemannian())
    with torch.no_grad():
        gru.weight_hh_l0[4 * factor : 4 * factor + 4] *= 1.1
    (row,) = report(gru)
    off = [residual > 0.1 for residual in row.residuals]
    assert off == [i == factor for i in range(3)]
    assert row.residuals[factor] == pytest.approx(0.21, rel=1e-4)
    assert not row.ok


def test_a_factor_that_is_a_product_is_one_factor() -> None:
    """Its residual is the worst of its blocks, and the table writes it as the user did."""
    manifold = ProductManifold((Stiefel**2, Sphere() ** 2 * Orthogonal, Euclidean), BlockSpec(rows=(8, 12, 2)))
    linear = constrain(nn.Linear(4, 22), "weight", manifold, Riemannian())
    (row,) = report(linear)
    assert row.ok
    assert len(row.residuals) == len(manifold) == 3
    assert row.determinants == ("", "", "")
    assert "ProductManifold((Stiefel**2, Sphere**2 * Orthogonal, Euclidean))" in str(report(linear))
    for place, factor in ((0, 0), (5, 0), (8, 1), (13, 1), (17, 1), (21, None)):
        broken = copy.deepcopy(linear)
        with torch.no_grad():
            broken.weight[place] *= 1.5
        (row,) = report(broken)
        assert [residual > 0.1 for residual in row.residuals] == [i == factor for i in range(3)]
        assert row.ok == (factor is None)


@pytest.mark.parametrize("method", [Riemannian(), Trivialization()], ids=repr)
def test_unequal_blocks_on_different_manifolds(method: Any) -> None:
    manifold = ProductManifold((Orthogonal, Sphere, Euclidean, Stiefel), BlockSpec(rows=(4, 1, 3, 6), axis=-2))
    before = nn.Linear(4, 14)
    linear = constrain(copy.deepcopy(before), "weight", manifold, method)
    (row,) = report(linear)
    assert row.ok
    assert row.determinants[0] in ("+", "-")
    assert row.determinants[1:] == ("", "", "")
    q, s, e, v = linear.weight.detach().split([4, 1, 3, 6])
    torch.testing.assert_close(q.T @ q, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(s.norm(), torch.tensor(1.0))
    torch.testing.assert_close(v.T @ v, torch.eye(4), rtol=0, atol=1e-5)
    assert torch.equal(e, before.weight[5:8])


@pytest.mark.parametrize("method", [Riemannian(), Trivialization()], ids=repr)
def test_a_single_block_of_many(method: Any) -> None:
    """The cell gate of an LSTM is held; the other gates are what they were, and learn as if nothing were held."""
    torch.manual_seed(0)
    before = nn.LSTM(3, 4)
    lstm = constrain(copy.deepcopy(before), "weight_hh_l0", Euclidean**2 * Stiefel * Euclidean, method)
    free = copy.deepcopy(lstm)
    i, f, _, o = lstm.weight_hh_l0.detach().chunk(4)
    assert torch.equal(torch.cat([i, f, o]), torch.cat([before.weight_hh_l0[:8], before.weight_hh_l0[12:]]))
    unconstrain(free, "weight_hh_l0")
    for model, optimizer in ((lstm, RiemannianSGD(lstm, lr=0.1)), (free, torch.optim.SGD(free.parameters(), lr=0.1))):
        model(torch.ones(5, 2, 3).cumsum(0).sin())[0].square().sum().backward()
        optimizer.step()
    expected = free.weight_hh_l0.detach().chunk(4)
    for k, gate in enumerate(lstm.weight_hh_l0.detach().chunk(4)):
        if k == 2:
            torch.testing.assert_close(gate.T @ gate, torch.eye(4), rtol=0, atol=1e-5)
            assert not torch.allclose(gate, expected[k], atol=1e-4)
        else:
            torch.testing.assert_close(gate, expected[k], rtol=1e-5, atol=1e-6)
    (row,) = report(lstm)
    assert row.ok
    assert len(row.residuals) == 4


def test_a_row_of_many_factors_fits_a_terminal() -> None:
    """It shows the worst; the record has all."""
    layout = BlockSpec.pattern("o i h w -> (o i) h w")
    conv = constrain(nn.Conv2d(16, 8, 3), "weight", Stiefel, Riemannian(), layout=layout, init="haar")
    (row,) = rows = report(conv)
    assert len(row.residuals) == len(row.determinants) == 128
    assert max(map(len, str(rows).splitlines())) < 160
    plus = int((torch.linalg.det(conv.weight.detach()) > 0).sum())
    assert f"{plus}x+ {128 - plus}x-" in str(rows)
    for value, shown in ((2.0, "3.0e+00, factor 37 of 128"), (math.nan, "nan, factor 37 of 128")):
        with torch.no_grad():
            conv.weight[2, 5] *= value
        line = str(report(conv)).splitlines()[2]
        assert line.startswith("!")
        assert shown in line


def test_records_are_a_list_to_work_with() -> None:
    rows = report(model())
    assert [row.name for row in rows if "gru" in row.name] == ["gru.weight_hh_l0"]
    assert max(max(row.residuals) for row in rows) < 1e-5
    assert rows[:1] == [rows[0]]
    assert max(map(len, str(rows).splitlines())) < 160


@dataclass(frozen=True)
class Anything(Euclidean):
    """Square matrices whose determinant means nothing."""

    ndim = 2


def test_a_determinant_is_shown_where_it_means_something() -> None:
    (row,) = report(constrain(nn.Linear(3, 3), "weight", Anything))
    assert row.determinants == ("",)


def test_nan_is_shown_and_flagged() -> None:
    net = model()
    with torch.no_grad():
        net["gru"].weight_hh_l0[5, 0] = math.nan
    gru, out = report(net)
    assert math.isnan(gru.residuals[1])
    assert not gru.ok
    assert gru.determinants[1] == ""
    assert out.ok
    first, second = str(report(net)).splitlines()[2:]
    assert first.startswith("!")
    assert "nan" in first
    assert not second.startswith("!")


@dataclass(frozen=True)
class Ray(Manifold):
    """Positive multiples of (1, 1), whose nearest point refuses NaN, and with it the residual that follows from it."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a.mean(-1, keepdim=True).expand_as(x)

    def nearest(self, x: Tensor) -> Tensor:
        if x.isnan().any() or (x.mean(-1) <= 0).any():
            raise ValueError("no nearest point")
        return x.mean(-1, keepdim=True).expand_as(x)

    def dim(self, shape: Any) -> int:
        return math.prod(shape[:-1])


def test_nan_is_nan_for_any_manifold_and_no_nearest_point_is_inf() -> None:
    linear = nn.Linear(2, 3)
    with torch.no_grad():
        linear.weight.abs_()
    constrain(linear, "weight", Ray, Riemannian())
    for value, residual in ((1.0, 0.0), (-1.0, math.inf), (math.nan, math.nan)):
        with torch.no_grad():
            linear.weight.fill_(value)
        (row,) = report(linear)
        assert row.residuals == pytest.approx((residual,), nan_ok=True)
        assert row.ok == (residual == 0)


def test_the_table_has_a_line_for_each_constraint() -> None:
    lines = str(report(model())).splitlines()
    assert len(lines) == 4
    for word in ("name", "manifold", "layout", "method", "worst residual per factor", "det"):
        assert word in lines[0]
    for word in ("gru.weight_hh_l0", "12x4", "Stiefel * SpecialOrthogonal * Euclidean", "Riemannian()"):
        assert word in lines[2]
    for word in ("out.weight", "Stiefel**2", "BlockSpec(rows=(2, 4), axis=0)", "Trivialization()"):
        assert word in lines[3]
    starts = [line.index(word) for line, word in zip(lines[2:], ("Riemannian()", "Trivialization()"), strict=True)]
    assert starts == [lines[0].index("method")] * 2


def test_nothing_is_constrained() -> None:
    assert str(report(nn.Linear(2, 2))) == "nothing is constrained"
    assert list(report(nn.Linear(2, 2))) == []


def test_a_tied_tensor_comes_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    assert len(report(constrain(net, "*.weight", Sphere))) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()])
def test_a_rounded_point_is_a_point(dtype: torch.dtype, method: object) -> None:
    linear = nn.Linear(16, 16, dtype=dtype)
    (row,) = report(constrain(linear, "weight", Orthogonal, method))  # type: ignore[arg-type]
    assert row.ok
    assert row.dtype == dtype
    assert row.residuals[0] > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_ok_is_what_contains_says_of_each_factor(dtype: torch.dtype) -> None:
    """At residuals beside the tolerance of the dtype, in any factor."""
    manifold = Stiefel * Sphere(ndim=2)
    for factor, residual in itertools.product((0, 1), (0.8, 1.2, 0.9e-3 / tolerance(dtype))):
        model = nn.Module()
        model.w = nn.Parameter(manifold.random(8, 3, dtype=dtype))
        constrain(model, "w", manifold, Riemannian())
        size = (1 + residual * tolerance(dtype)) ** (0.5 if factor == 0 else 1.0)
        with torch.no_grad():
            model.w[4 * factor : 4 * factor + 4] *= size
        (row,) = report(model)
        assert row.ok == bool(manifold.contains(model.w.detach()).all()) == (residual < 1), (factor, residual)
        assert str(report(model)).splitlines()[2].startswith("!") != row.ok


def test_an_average_by_hand_is_off_and_seen_to_be() -> None:
    """The mean of points is no point: of two at an angle t it is by 1 - cos(t / 2) too short."""
    net: Any = constrain(nn.Linear(2, 2), "weight", Stiefel, Riemannian(), init="identity")
    other = torch.tensor([[math.cos(0.05), -math.sin(0.05)], [math.sin(0.05), math.cos(0.05)]])
    with torch.no_grad():
        net.weight.lerp_(other, 0.5)
    (row,) = report(net)
    assert row.residuals[0] == pytest.approx(1 - math.cos(0.025) ** 2, rel=1e-2)
    assert not row.ok


# What torch composes on top ------------------------------------------------------------------------------------------


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, w: Tensor) -> Tensor:
        return self.gain * w


class LowRankUpdate(nn.Module):
    def __init__(self, n: int, p: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(n, 2)), nn.Parameter(torch.randn(2, p))

    def forward(self, w: Tensor) -> Tensor:
        return w + (self.a @ self.b).to(w.dtype)


def on_top(kind: str, layer: nn.Module) -> None:
    if kind == "SpectralNorm":
        nn.utils.parametrizations.spectral_norm(layer)
        return
    top = Gain() if kind == "Gain" else LowRankUpdate(*layer.weight.shape)
    nn.utils.parametrize.register_parametrization(layer, "weight", top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kinds", [("Gain",), ("LowRankUpdate",), ("SpectralNorm",), ("Gain", "LowRankUpdate")])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
def test_it_speaks_of_the_constrained_tensor_whatever_is_on_top(
    shape: tuple[int, int], kinds: tuple[str, ...], dtype: torch.dtype
) -> None:
    layer: Any = constrain(nn.Linear(*shape), "weight", Stiefel).to(dtype)
    for kind in kinds:
        on_top(kind, layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, shape[0], dtype=dtype)).square().sum().backward()
        optimizer.step()
    (row,) = report(layer)
    assert row.ok
    assert row.composed == kinds
    assert ", then ".join(["Trivialization()", *kinds]) in str(report(layer))
    held = layer.parametrizations.weight
    point = held[0](held.original).detach().float() if dtype == torch.bfloat16 else held[0](held.original).detach()
    assert row.residuals == (float(Stiefel().residual(point)),)
    with torch.no_grad():
        held.original.fill_(math.nan)
    assert not report(layer)[0].ok


def test_it_computes_the_constrained_tensor_and_nothing_of_what_is_on_top() -> None:
    layer: Any = constrain(nn.Linear(4, 4), "weight", Stiefel)
    on_top("SpectralNorm", layer)
    before = {key: value.clone() for key, value in layer.state_dict().items()}  # its power iteration moves when read
    report(layer)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_an_average_of_a_weight_with_a_gain_is_on_its_manifold() -> None:
    layer: Any = constrain(nn.Linear(4, 4), "weight", Stiefel)
    on_top("Gain", layer)
    average = AveragedModel(layer)
    for _ in range(2):
        with torch.no_grad():
            layer.parametrizations.weight.original += 0.1 * torch.randn(4, 4)
            layer.parametrizations.weight[1].gain += 1.0
        average.update_parameters(layer)
    assert report(average)[0].ok
    assert average.module.parametrizations.weight[1].gain == 3.5
    w = average.module.weight.detach() / 3.5
    torch.testing.assert_close(w.T @ w, torch.eye(4), rtol=0, atol=1e-5)
