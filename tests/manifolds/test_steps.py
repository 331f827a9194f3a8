"""The fused steps of an optimizer equal their plain definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accelerator.pretend import Waits, pretended
from manifolds import (
    Euclidean,
    Grassmann,
    Manifold,
    Orthogonal,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    _group,
    retractions,
)
from manifolds.engine import Engine, engine
from manifolds.kernels import steps

SHAPES = {
    "square": (3, 20, 20),
    "tall": (3, 24, 6),
    "wide": (3, 6, 24),
    "many numbers": (3, 500, 6),
    "almost square": (2, 20, 19),
    "column": (4, 9, 1),
}
MANIFOLDS: list[Manifold] = [
    Stiefel(metric, retraction)
    for metric in ("euclidean", "canonical")
    for retraction in (retractions.polar, retractions.cayley, retractions.qr, retractions.exp)
]
MIXED: list[Manifold] = [Stiefel("euclidean"), Stiefel("canonical"), Grassmann()]


def is_one_point(manifold: Manifold, shape: tuple[int, ...]) -> bool:
    """All of C^n is the only subspace of its dimension."""
    return isinstance(manifold, Grassmann) and shape[-1] == shape[-2]


def instance(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two points near each other, coordinates at the first one, and a Euclidean gradient."""
    x = manifold.random(*shape, dtype=dtype)
    c = engine(manifold).coordinates(x, torch.randn(shape, dtype=dtype))
    y = engine(manifold).move(x, 0.1 * engine(manifold).coordinates(x, torch.randn(shape, dtype=dtype)))
    return x, y, c, torch.randn(shape, dtype=dtype)


def plain_mix(m: Manifold, y: Tensor, stored: Tensor, g: Tensor, keep: float, add: float) -> tuple[Tensor, Tensor]:
    return Engine.mix(engine(m), y, stored.clone(), g, keep, add)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("manifold", MIXED, ids=str)
@pytest.mark.parametrize(("keep", "add"), [(0.9, 0.1), (0.7, 1.0), (0.0, 1.0)])
def test_mix_is_its_definition(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, keep: float, add: float
) -> None:
    """Momentum and squared norm of the gradient, fused and as written, for any gradient."""
    if is_one_point(manifold, shape):
        return
    x, y, c, g = instance(manifold, shape, dtype)
    carried, lifted = engine(manifold).carry(x, y, c), engine(manifold).lift(y, g)
    stored = engine(manifold).store(x, y, c)
    torch.testing.assert_close(engine(manifold).recall(y, stored), carried, rtol=0, atol=1e-12)
    mixed, square = engine(manifold).mix(y, stored.clone(), g, keep, add)
    torch.testing.assert_close(mixed, keep * carried + add * lifted, rtol=0, atol=1e-10)
    torch.testing.assert_close(square, engine(manifold).coordinate_inner(y, lifted, lifted), rtol=1e-10, atol=0)
    expected = plain_mix(manifold, y, stored, g, keep, add)
    torch.testing.assert_close((mixed, square), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 40, 6), (3, 6, 40), (3, 500, 6), (3, 6, 500)])
@pytest.mark.parametrize("manifold", MIXED, ids=str)
@pytest.mark.parametrize("part", [1.0, 1e-1, 1e-3, 1e-5])
def test_the_norm_of_a_small_gradient_is_exact(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, part: float
) -> None:
    """Near an optimum the Euclidean gradient is normal but for a small part, whose norm must not be lost: it is as
    good as the rounding of the gradient itself allows, against the same in twice the precision."""
    double = {torch.float32: torch.float64, torch.complex64: torch.complex128}.get(dtype, dtype)
    x = manifold.random(*shape, dtype=dtype)
    s = torch.randn(3, 6, 6, dtype=dtype)
    s = s + s.mH
    normal = s @ x if shape[-2] < shape[-1] else x @ s
    g = normal + part * manifold.project(x, torch.randn(shape, dtype=dtype))
    g[1:] = g[:1]  # one point decides for all
    x[1:] = x[:1]
    _, square = engine(manifold).mix(x, torch.zeros_like(x), g, 0.9, 0.1)
    exact_x = x.to(double)
    exact_x = exact_x if double == dtype else manifold.nearest(exact_x)
    lifted = engine(manifold).lift(exact_x, g.to(double))
    norm = engine(manifold).coordinate_inner(exact_x, lifted, lifted).sqrt()
    error = 100 * torch.finfo(dtype).eps * float(torch.linalg.vector_norm(g, dim=(1, 2)).max())
    _, alone = engine(manifold).mix(x[:1], torch.zeros_like(x[:1]), g[:1], 0.9, 0.1)
    for found in (square, alone):
        assert float((found.sqrt() - norm[: len(found)]).abs().max()) <= error
        assert float((found / norm[: len(found)] ** 2 - 1).abs().max()) <= max(1e-3, error / float(norm.min()) * 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 40, 6), (3, 6, 40), (3, 500, 6), (3, 6, 500)])
@pytest.mark.parametrize("manifold", MIXED, ids=str)
def test_mix_without_a_look_is_its_definition(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """On accelerators, where nothing waits for a value; the gradient is not written to."""
    x, y, c, g = instance(manifold, shape, dtype)
    stored, given = engine(manifold).store(x, y, c), g.clone()
    with pretended(), Waits():
        found = engine(manifold).mix(y, stored.clone(), g, 0.9, 0.1)
    torch.testing.assert_close(found, plain_mix(manifold, y, stored, g, 0.9, 0.1), rtol=1e-10, atol=1e-10)
    assert torch.equal(g, given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("manifold", [*MANIFOLDS, Grassmann()], ids=str)
@pytest.mark.parametrize("length", [0.0, 1e-6, 1e-3, 0.05, 0.3, 4.0])
def test_advance_is_its_definition(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, length: float
) -> None:
    """Short steps by series and long ones: move(x, size c), a number for all points or one for each."""
    if is_one_point(manifold, shape):
        return
    x, _, c, _ = instance(manifold, shape, dtype)
    c = c / torch.linalg.vector_norm(c, dim=(1, 2), keepdim=True)
    sizes = torch.linspace(length, length / 2, len(x), dtype=torch.float64)[:, None, None]
    before = x.clone(), c.clone()
    torch.testing.assert_close(
        engine(manifold).advance(x, c, sizes), engine(manifold).move(x, sizes * c), rtol=0, atol=1e-10
    )
    for size in (length, torch.tensor(length, dtype=torch.float64)):
        torch.testing.assert_close(
            engine(manifold).advance(x, c, size), engine(manifold).move(x, length * c), rtol=0, atol=1e-10
        )
    assert torch.equal(x, before[0])
    assert torch.equal(c, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("manifold", [Orthogonal(), SpecialOrthogonal(), SpecialOrthogonal(retractions.exp)], ids=str)
@pytest.mark.parametrize("length", [0.0, 1e-3, 0.3, 4.0])
def test_the_groups_step_as_defined(manifold: Manifold, dtype: torch.dtype, length: float) -> None:
    x, y, c, g = instance(manifold, (3, 20, 20), dtype)
    expected = plain_mix(manifold, y, c, g, 0.9, 0.1)
    torch.testing.assert_close(engine(manifold).mix(y, c.clone(), g, 0.9, 0.1), expected, rtol=1e-10, atol=1e-10)
    c = c / torch.linalg.vector_norm(c, dim=(1, 2), keepdim=True)
    moved = engine(manifold).advance(x, c, length)
    torch.testing.assert_close(moved, engine(manifold).move(x, length * c), rtol=0, atol=1e-10)
    assert bool(manifold.contains(moved).all())


@pytest.mark.parametrize("n", [3, 5, 12])
@pytest.mark.parametrize("scale", [1e-26, 1e-21, 1.0, 1e12])
@pytest.mark.parametrize("each", [True, False])
def test_a_step_is_that_of_the_product_of_size_and_coordinates(n: int, scale: float, each: bool) -> None:
    """However small the one and large the other, where the square of the one underflows."""
    manifold = Stiefel()
    x = manifold.random(2, n, n)
    c = engine(manifold).coordinates(x, torch.randn(2, n, n))
    c = 0.3 * c / torch.linalg.vector_norm(c, dim=(1, 2), keepdim=True)
    size = torch.full((2, 1, 1), 1 / scale) if each else 1 / scale
    expected = engine(manifold).advance(x, c, torch.ones(2, 1, 1) if each else 1.0)
    torch.testing.assert_close(engine(manifold).advance(x, c * scale, size), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [1e-6, 1e-4, 1e-2, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 300, 40), (2, 40, 300)])
@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann()], ids=str)
def test_a_polar_step_forgets_the_errors_before_it(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, length: float
) -> None:
    """From a point that is off by 1000 eps to one that is off by rounding: what `renormalizes` claims."""
    x = manifold.random(*shape, dtype=dtype) * (1 + 1000 * torch.finfo(dtype).eps)
    assert engine(manifold).renormalizes(x)
    c = manifold.project(x, torch.randn(shape, dtype=dtype))
    y = engine(manifold).advance(x, c / torch.linalg.vector_norm(c, dim=(1, 2), keepdim=True), length)
    assert float(manifold.residual(y).max()) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("length", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 3), (2, 3, 20)])
def test_a_step_of_any_length_ends_on_the_manifold(shape: tuple[int, ...], dtype: torch.dtype, length: float) -> None:
    """Also one that is not tangent, as of rounding that was enlarged, where Y^H Y may be nearly singular."""
    manifold = Stiefel()
    x = manifold.random(*shape, dtype=dtype)
    c = manifold.project(x, torch.randn(shape, dtype=dtype))
    shrink = torch.diag(torch.tensor([1 / length - 1, 0.0, 0.0], dtype=dtype))
    flat = x @ shrink if shape[-2] > shape[-1] else shrink @ x
    for step in (length * c / torch.linalg.vector_norm(c, dim=(1, 2), keepdim=True), flat):
        y = engine(manifold).advance(x, step, 1.0)
        assert float(manifold.residual(y).max()) <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["mix_tall", "mix_horizontal", "polar_step", "cayley_step", "mix_square"])
def test_the_fused_steps_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above compare something: short steps on tall and square matrices go through every fused kernel."""
    place: Any = _group if name == "cayley_step" else steps
    kernel, results = getattr(place, name), []
    monkeypatch.setattr(place, name, lambda *a, **k: results.append(kernel(*a, **k)) or results[-1])
    for shape in ((2, 24, 6), (2, 20, 20)):
        x, _, c, g = instance(Stiefel(), shape, torch.float64)
        engine(Stiefel()).mix(x, c.clone(), g, 0.9, 0.1)
        engine(Stiefel()).advance(x, c, 1e-3)
    for group in (Orthogonal(), SpecialOrthogonal()):
        x, _, c, g = instance(group, (2, 20, 20), torch.float64)
        engine(group).mix(x, c.clone(), g, 0.9, 0.1)
        engine(group).advance(x, c, 1e-3)
    x, _, c, g = instance(Grassmann(), (2, 24, 6), torch.float64)
    engine(Grassmann()).mix(x, c.clone(), g, 0.9, 0.1)
    engine(Grassmann()).advance(x, c, 1e-3)
    assert len(results) == {"mix_tall": 1, "mix_horizontal": 1, "polar_step": 2}.get(name, 3)
    assert None not in results


@pytest.mark.parametrize("manifold", [Sphere(), Orthogonal(), Euclidean()], ids=str)
def test_a_manifold_without_fused_steps_has_them_all_the_same(manifold: Manifold) -> None:
    shape = {0: (5,), 1: (5, 4), 2: (5, 3, 3)}[manifold.ndim]
    x, y, c, g = instance(manifold, shape, torch.float64)
    carried, lifted = engine(manifold).carry(x, y, c), engine(manifold).lift(y, g)
    mixed, square = engine(manifold).mix(y, engine(manifold).store(x, y, c).clone(), g, 0.9, 0.1)
    torch.testing.assert_close(mixed, 0.9 * carried + 0.1 * lifted)
    torch.testing.assert_close(square, engine(manifold).coordinate_inner(y, lifted, lifted))
    torch.testing.assert_close(engine(manifold).advance(x, c, 0.5), engine(manifold).move(x, 0.5 * c))
    assert not engine(manifold).renormalizes(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(40, 6, 3), (40, 3, 6), (40, 5, 5)], ids=str)
@pytest.mark.parametrize("manifold", MIXED, ids=str)
@pytest.mark.parametrize("part", [0.0, 1e-7, 1e-3])
def test_the_squared_norm_of_a_gradient_is_never_negative(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, part: float
) -> None:
    """At an optimum the gradient is rounding, which its norm may show, and which no root may turn into NaN."""
    torch.manual_seed(2)
    x = manifold.random(*shape, dtype=dtype)
    s = torch.randn(len(x), min(shape[1:]), min(shape[1:]), dtype=dtype)
    normal = (s + s.mH) @ x if shape[-2] < shape[-1] else x @ (s + s.mH)
    g = normal + part * torch.randn(shape, dtype=dtype)
    _, square = engine(manifold).mix(x, torch.zeros_like(x), g, 0.9, 0.1)
    assert float(square.min()) >= 0
    lifted = engine(manifold).lift(x, g)
    lifted = lifted.to(torch.promote_types(dtype, torch.float64))
    norm = engine(manifold).coordinate_inner(x.to(lifted), lifted, lifted).sqrt()
    assert float((square.sqrt() - norm).abs().max()) <= 30 * torch.finfo(dtype).eps * float(g.abs().max())


@pytest.mark.parametrize("manifold", [*MANIFOLDS, Orthogonal(), SpecialOrthogonal(), Sphere(), Euclidean()], ids=str)
@pytest.mark.parametrize("size", [0, 1, np.float32(0.25), np.float64(0.25)], ids=repr)
def test_any_number_is_a_size(manifold: Manifold, size: Any) -> None:
    shape = {0: (5,), 1: (5, 4), 2: (5, 6, 6)}[manifold.ndim]
    for sides in (shape, (5, 6, 2)) if isinstance(manifold, Stiefel) else (shape,):
        x, _, c, _ = instance(manifold, sides, torch.float64)
        c *= 0.01
        torch.testing.assert_close(
            engine(manifold).advance(x, c, size), engine(manifold).move(x, float(size) * c), rtol=0, atol=1e-12
        )
