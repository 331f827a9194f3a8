"""What a manifold gets for its four methods, and what it may not leave out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch
from torch import Tensor

from manifolds import (
    Euclidean,
    GeodesicManifold,
    Manifold,
    NearestPointManifold,
    Orthogonal,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
    tolerance,
)
from manifolds.engine import engine
from manifolds.testing import check_manifold


@dataclass(frozen=True)
class Oblique(NearestPointManifold):
    """Matrices whose columns have length 1: the whole of a manifold, in the least that it can say."""

    weight: float = 1.0

    ndim = 2
    constant_norm = True

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - x * (x.conj() * a).real.sum(-2, keepdim=True)

    def nearest(self, x: Tensor) -> Tensor:
        return x / x.abs().square().sum(-2, keepdim=True).sqrt()

    def dim(self, shape: Sequence[int]) -> int:
        *batch, n, p = shape
        return torch.Size(batch).numel() * (n - 1) * p

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        return self.dim(shape) + torch.Size(shape).numel()


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 2), (4, 1)], ids=str)
def test_four_methods_are_a_manifold(shape: tuple[int, ...]) -> None:
    check_manifold(Oblique, shape)
    check_manifold(Oblique * Stiefel, (2 * shape[0], shape[1]))


def assert_sum(found: Tensor, right: Tensor) -> None:
    """Equal but for the order in which 12 positive numbers were added."""
    torch.testing.assert_close(found, right, rtol=12 * torch.finfo(right.dtype).eps, atol=0)


def test_defaults_are_what_they_say() -> None:
    m, x, y = Oblique(), *Oblique().random(2, 4, 3, dtype=torch.float64)
    a, v = torch.randn(4, 3, dtype=torch.float64), m.project(x, torch.randn(4, 3, dtype=torch.float64))
    z = x + 0.1 * a
    assert_sum(m.residual(z), (z - m.nearest(z)).square().sum().sqrt())
    assert torch.equal(m.gradient(x, a), m.project(x, a))
    assert_sum(m.inner(x, v, v), v.square().sum())
    assert_sum(m.norm(x, v), v.square().sum().sqrt())
    assert torch.equal(m.retract(x, v), m.nearest(x + v))
    assert torch.equal(m.transport(x, y, v), m.project(y, v))
    assert torch.equal(engine(m).coordinates(x, a), m.project(x, a))
    assert torch.equal(engine(m).lift(x, a), m.gradient(x, a))
    assert torch.equal(engine(m).move(x, v), m.retract(x, v))
    assert torch.equal(engine(m).carry(x, y, v), m.transport(x, y, v))
    assert torch.equal(engine(m).coordinate_inner(x, v, v), m.inner(x, v, v))
    assert engine(m).polish(x) is x
    assert engine(m).split(x) == [(m, x)]


@pytest.mark.parametrize("missing", ["ndim", "project", "nearest", "dim"])
def test_none_of_the_four_may_be_left_out(missing: str) -> None:
    members = {k: v for k, v in vars(Oblique).items() if k in {"ndim", "project", "nearest", "dim"} - {missing}}
    with pytest.raises(TypeError, match=missing):
        type("Partial", (NearestPointManifold,), members)()


SIX = ("ndim", "project", "retract", "residual", "random", "dim")


@pytest.mark.parametrize("missing", SIX)
def test_a_set_without_nearest_points_defines_six(missing: str) -> None:
    members = {k: getattr(Oblique, k) for k in SIX if k != missing}
    with pytest.raises(TypeError, match=missing):
        type("Partial", (Manifold,), members)()


def test_a_plain_manifold_that_defines_nearest_is_a_closed_set() -> None:
    """So a manifold written before there were three kinds stays what it was."""
    members = {k: v for k, v in vars(Oblique).items() if k in {"ndim", "project", "nearest", "dim"}}
    plain: type[Manifold] = dataclass(frozen=True)(type("Plain", (Manifold,), members))
    assert issubclass(plain, NearestPointManifold)
    assert isinstance(plain() * Sphere, NearestPointManifold)
    z = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(plain().retract(z, z), Oblique().retract(z, z))
    assert torch.equal(plain().residual(z), Oblique().residual(z))


@dataclass(frozen=True)
class Open(Manifold):
    """The sphere without a word about nearest points."""

    ndim = 1
    project, retract, residual, dim = Sphere.project, Sphere.retract, Sphere.residual, Sphere.dim  # type: ignore
    random = Sphere.random  # type: ignore


@pytest.mark.parametrize(
    ("manifold", "nearest", "geodesic"),
    [
        (Stiefel**3, True, True),
        (Oblique() * Stiefel, True, False),
        (Sphere * Euclidean, True, True),
        (Open() * Sphere, False, False),
        (ProductManifold((Stiefel * Sphere, Sphere)), True, True),
    ],
    ids=str,
)
def test_a_product_has_the_abilities_of_all_its_factors(manifold: Manifold, nearest: bool, geodesic: bool) -> None:
    assert isinstance(manifold, ProductManifold)
    assert (isinstance(manifold, NearestPointManifold), isinstance(manifold, GeodesicManifold)) == (nearest, geodesic)
    assert pickle.loads(pickle.dumps(manifold)) == manifold == copy.deepcopy(manifold)
    assert type(pickle.loads(pickle.dumps(manifold))) is type(manifold)
    other = replace(manifold, factors=(Sphere(),) * len(manifold))
    assert isinstance(other, GeodesicManifold)
    assert len(other) == len(manifold)


@pytest.mark.parametrize("missing", ["exp", "log"])
def test_geodesics_need_exp_and_log(missing: str) -> None:
    members = {k: v for k, v in vars(Sphere).items() if k not in (missing, "__dict__", "__weakref__")}
    with pytest.raises(TypeError, match=missing):
        type("Partial", (GeodesicManifold,), members)()


@pytest.mark.parametrize(
    ("manifold", "text"),
    [
        (Euclidean(), "Euclidean"),
        (Sphere(), "Sphere"),
        (Stiefel(), "Stiefel"),
        (Stiefel("canonical"), "Stiefel(metric='canonical')"),
        (Stiefel(retraction=retractions.qr), "Stiefel(retraction=qr)"),
        (Orthogonal(), "Orthogonal"),
        (SpecialOrthogonal(retractions.exp), "SpecialOrthogonal(retraction=exp)"),
        (Oblique(), "Oblique"),
        (Oblique(weight=2.0), "Oblique(weight=2.0)"),
    ],
)
def test_repr_says_what_is_not_the_default(manifold: Manifold, text: str) -> None:
    assert repr(manifold) == text


@pytest.mark.parametrize(
    "manifold", [Euclidean(), Sphere(), Stiefel(), Orthogonal(), SpecialOrthogonal(), Stiefel**2], ids=str
)
def test_a_manifold_is_frozen(manifold: Manifold) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError)):
        manifold.retraction = None  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_contains_is_the_residual_within_tolerance(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert tolerance(dtype) == 128 * eps
    x = torch.eye(3, 2, dtype=dtype)[None].repeat(4, 1, 1)
    x[1, 0, 0] += 50 * eps  # the residual is twice that
    x[2, 0, 0] += 100 * eps
    x[3, 0, 0] = torch.nan
    assert Stiefel().contains(x).tolist() == [True, True, False, False]


def test_constant_norm_is_said_where_it_is_so() -> None:
    """Weight decay along the gradient of |x|^2 / 2 is x: normal to the manifold exactly where |x| is constant."""
    for manifold, shape in [
        (Sphere(), (4,)),
        (Stiefel(), (4, 2)),
        (Orthogonal(), (3, 3)),
        (SpecialOrthogonal(), (3, 3)),
        (Euclidean(), (3,)),
        (Stiefel * Sphere, (6, 2)),
        (Stiefel * Euclidean, (6, 2)),
    ]:
        x = manifold.random(*shape, dtype=torch.float64)
        assert (float(manifold.gradient(x, x).norm()) < 1e-14) == manifold.constant_norm, manifold


class Undecorated(Manifold):
    """A manifold whose author forgot the decorator."""

    ndim = 1
    project = Oblique.project
    nearest = Oblique.nearest
    dim = Oblique.dim


@pytest.mark.parametrize(
    "use",
    [Undecorated, lambda: Undecorated**2, lambda: check_manifold(Undecorated, (5,)), lambda: dataclass(Undecorated)()],
)
def test_a_manifold_that_is_no_frozen_dataclass_says_so(use: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"Write @dataclass\(frozen=True\) above class Undecorated"):
        use()


def test_a_subclass_of_a_manifold_may_have_no_options_of_its_own() -> None:
    class Named(Oblique):
        pass

    assert repr(Named()) == "Named"
    assert Named() == Named()
