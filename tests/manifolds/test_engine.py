"""What engines call is apart from manifolds, and is that of the manifold as its author wrote it."""

from __future__ import annotations

import copy
import pickle
import pydoc
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel
from manifolds.engine import NAMES, Engine, Isometric, engine, settled
from tests.sets import EVERY

MANIFOLDS: list[Manifold] = [Euclidean(), Sphere(), Stiefel(), Orthogonal(), SpecialOrthogonal(), Stiefel**2]
each = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


class CalledError(Exception):
    pass


def bringing(base: type[Manifold], name: str) -> Manifold:
    """A manifold that brings a method of this name, which says that it was called."""

    def method(self: Any, *given: Any) -> Any:
        raise CalledError(name)

    return dataclass(frozen=True, repr=False)(type("Mine", (base,), {name: method}))()


@each
def test_help_shows_mathematics(manifold: Manifold) -> None:
    """No method of an engine is one of a manifold, and none is in its help."""
    assert {*NAMES} & {*dir(manifold)} == set()
    assert "_engine" not in pydoc.render_doc(type(manifold), renderer=pydoc.plaintext)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [Sphere, Orthogonal, Stiefel])
def test_a_manifold_that_has_a_method_of_an_engine_is_asked_itself(base: type[Manifold], name: str) -> None:
    mine = bringing(base, name)
    with pytest.raises(CalledError, match=name):
        getattr(engine(mine), name)()
    assert engine(mine).polishes == (name == "polish" or base is not Sphere)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 5, 3)])
@pytest.mark.parametrize("base", [Sphere, Stiefel])
def test_what_it_brings_is_asked_by_the_rest(base: type[Manifold], shape: tuple[int, ...]) -> None:
    """By what is derived of it, and by a product of which it is a factor."""
    x = base().random(*shape)  # type: ignore[call-arg]
    with pytest.raises(CalledError, match="lift"):
        Engine.mix(engine(bringing(base, "lift")), x, x.clone(), x, 0.9, 0.1)
    with pytest.raises(CalledError, match="move"):
        Engine.advance(engine(bringing(base, "move")), x, x, 0.1)
    product = bringing(base, "move") ** 2
    with pytest.raises(CalledError, match="move"):
        engine(product).move(torch.cat([x, x], -product.ndim), torch.cat([x, x], -product.ndim))


@each
def test_equal_manifolds_have_one_engine_and_copies_find_it(manifold: Manifold) -> None:
    of = engine(manifold)
    assert engine(copy.deepcopy(manifold)) is of
    assert pickle.loads(pickle.dumps(of)) is of
    assert copy.deepcopy(of) is of
    assert of.manifold == manifold
    assert repr(of) == f"engine({manifold})"


def test_options_make_another_engine() -> None:
    x = Stiefel().random(4, 4, dtype=torch.float64)
    g = torch.randn(4, 4, dtype=torch.float64)
    plain, canonical = (engine(Stiefel(metric=metric)).lift(x, g) for metric in ("euclidean", "canonical"))
    torch.testing.assert_close(canonical, 2 * plain, rtol=0, atol=0)


@dataclass(frozen=True)
class Listed(Sphere):
    """With an option that cannot be hashed, as an author may write it before check_manifold says so."""

    axes: list[int] = field(default_factory=list)


def test_a_manifold_that_cannot_be_hashed_has_an_engine() -> None:
    x = Sphere().random(3)
    # a norm, and a division by it
    torch.testing.assert_close(engine(Listed()).move(x, 0 * x), x, rtol=4 * torch.finfo(x.dtype).eps, atol=0)


@dataclass(frozen=True, repr=False)
class Open(Manifold):
    """Positive numbers, which have no nearest point; polished to be above zero."""

    ndim = 0

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x * (v / x).exp()

    def residual(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.0, 1.0)

    def random(self, *shape: Any, **options: Any) -> Tensor:
        return torch.randn(*shape, **options).exp()

    def dim(self, shape: Any) -> int:
        return int(torch.Size(shape).numel())

    def polish(self, x: Tensor) -> Tensor:
        return x.abs()


def test_settled_is_the_nearest_point_or_what_polish_leaves() -> None:
    x = torch.tensor([3.0, 4.0])
    assert torch.equal(settled(Sphere(), x), x / 5)
    assert torch.equal(settled(Open(), -x), x)


@pytest.mark.parametrize("manifold", [m for m in EVERY if isinstance(engine(m), Isometric)], ids=str)
def test_isometric_coordinates_have_the_metric_as_their_inner_product(manifold: Manifold) -> None:
    """|frame(x, v)| = |v|_x, and lift is the frame of the gradient."""
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(3, 3, generator=generator, dtype=torch.float64)
    v, g = manifold.random_tangent(x, generator), torch.randn(3, 3, generator=generator, dtype=torch.float64)
    by = engine(manifold)
    assert isinstance(by, Isometric)
    c, axes = by.frame(x, v), tuple(range(-manifold.ndim, 0))
    torch.testing.assert_close((c * c).sum(axes) if axes else c * c, manifold.inner(x, v, v))
    torch.testing.assert_close(by.coordinates(x, c), c)
    torch.testing.assert_close(by.lift(x, g), by.frame(x, manifold.gradient(x, g)))
