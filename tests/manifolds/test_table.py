"""One table: every public map of every manifold, by every way of taking derivatives, in vmap and over batch axes.

A cell is checked in float64 against central differences, or a loop. `REFUSED` lists the cells that are no maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from manifolds import (
    BlockSpec,
    DoublyStochastic,
    Euclidean,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    Hyperboloid,
    Manifold,
    NearestPointManifold,
    Oblique,
    Orthogonal,
    PoincareBall,
    ProductManifold,
    Simplex,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
    retractions,
)

# torch compiles its own rules for forward derivatives by torch.jit.script when they are first used
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

REAL, COMPLEX = torch.float64, torch.complex128
RETRACTIONS = (retractions.polar, retractions.qr, retractions.cayley, retractions.exp)
PATTERN = BlockSpec.pattern("(a k b) c -> (a k) b c", a=2, k=2)
SETS: list[tuple[Manifold, tuple[int, ...], torch.dtype]] = [
    *((Stiefel(retraction=r), shape, REAL) for r in RETRACTIONS for shape in ((4, 2), (2, 4), (4, 4))),
    (Stiefel("canonical", retractions.exp), (4, 2), REAL),
    (Stiefel("canonical"), (2, 3), COMPLEX),
    (Stiefel(retraction=retractions.qr), (3, 2), COMPLEX),
    (Orthogonal(), (3, 3), REAL),
    (Orthogonal(retractions.exp), (4, 4), COMPLEX),
    (SpecialOrthogonal(), (3, 3), REAL),
    (SpecialOrthogonal(retractions.polar), (3, 3), COMPLEX),
    (Sphere(), (4,), REAL),
    (Sphere(), (3,), COMPLEX),
    (Euclidean(), (3,), REAL),
    (Euclidean(), (2,), COMPLEX),
    (Euclidean(2), (2, 3), REAL),
    (Sphere(2.0, 2), (2, 2), REAL),
    (Oblique(), (3, 2), REAL),
    (Oblique(-1), (2, 2), COMPLEX),
    (Symmetric(), (3, 3), COMPLEX),
    (Skew(), (3, 3), REAL),
    (Grassmann(), (4, 2), REAL),
    (Grassmann(), (2, 3), COMPLEX),
    (FixedRank(2), (4, 3), REAL),
    (FixedRank(1), (2, 3), COMPLEX),
    (Simplex(), (2,), REAL),
    (DoublyStochastic(), (2, 2), REAL),
    (PoincareBall(), (3,), REAL),
    (Hyperboloid(-0.1), (3,), REAL),
    (Stiefel**2, (6, 2), REAL),
    (Orthogonal * Sphere * Stiefel, (6, 2), REAL),
    (ProductManifold((Stiefel,) * 4, PATTERN), (8, 3), REAL),
]
sets = pytest.mark.parametrize(("manifold", "shape", "dtype"), SETS, ids=[f"{m}-{s}-{d}" for m, s, d in SETS])

ONE = ("nearest", "residual", "contains")
TWO = ("project", "gradient", "retract", "norm", "exp", "log", "distance")
THREE = ("inner", "transport")
GEODESIC = ("exp", "log", "distance")
CLOSED = ("nearest", "residual")
REPEATED = [(Stiefel(retraction=r), REAL) for r in RETRACTIONS[1:]]  # whose geodesics are those of the default
REFUSED = {"contains": "has truth values, of which there are no derivatives"}


class Cell(NamedTuple):
    name: str
    call: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]


def cells(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> list[Cell]:
    """Every map, at generic arguments: 3 of each."""
    torch.manual_seed(0)
    x, y = (manifold.random(3, *shape, dtype=dtype) for _ in range(2))
    u, v = (manifold.project(x, 0.5 * torch.randn_like(x)) for _ in range(2))
    # on one part of O(n)
    one = manifold.random(*shape, dtype=dtype).expand(x.shape)
    here, there = (manifold.retract(one, manifold.project(one, 0.7 * torch.randn_like(x))) for _ in range(2))
    here, there = (
        here.resolve_conj(),
        there.resolve_conj(),
    )  # torch takes no forward derivatives at a view of a conjugate
    given = {
        "nearest": (x + 0.3 * torch.randn_like(x),),
        "residual": (1.5 * x + 0.1 * torch.randn_like(x),),
        "contains": (x,),
        "inner": (x, u, v),
        "transport": (x, y, v),
        "log": (here, there),
        "distance": (here, there),
    }
    geodesic = isinstance(manifold, GeodesicManifold) and (manifold, dtype) not in REPEATED
    names = [n for n in (*ONE, *TWO, *THREE) if n not in GEODESIC or geodesic]
    if not isinstance(manifold, NearestPointManifold):  # of an open set residual is a verdict: inf outside
        names = [n for n in names if n not in CLOSED]
    return [Cell(name, getattr(manifold, name), given.get(name, (x, v))) for name in names]


def number(cell: Cell) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """A smooth function of what the map gives, of one argument each."""
    out = cell.call(*(a[0] for a in cell.arguments))
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))

    def f(arguments: tuple[Tensor, ...]) -> Tensor:
        z = cell.call(*arguments)
        z = (z * weight).real + (z.conj() * z).real / 2 if z.is_complex() else z * weight + z * z / 2
        return z.sum()

    return f


def dot(g: tuple[Tensor, ...], d: tuple[Tensor, ...]) -> Tensor:
    return sum(((a.conj() * b).real.sum() for a, b in zip(g, d, strict=True)), torch.zeros((), dtype=REAL))


class Slope(NamedTuple):
    value: Tensor
    doubt: float


def slope(f: Callable[[float], Tensor], h: float = 2.5e-4) -> Slope:
    """Central, to order h^4: off by about 1e-10, more near the boundary of an open set. Doubt: how far it is from that
    with 2h, whose error is 16 times as large."""
    near, far = ((8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h) for h in (h, 2 * h))
    return Slope(near, float((near - far).abs()))


def close(found: Tensor, right: Tensor | Slope, name: str, atol: float = 1e-7) -> None:
    """1e-7: 5e-10 of differences, times third and fifth derivatives of functions whose values are about 10."""
    right, doubt = right if isinstance(right, Slope) else (right, 0.0)
    torch.testing.assert_close(found, right, rtol=1e-7, atol=atol + doubt, msg=lambda text: f"{name}: {text}")


@sets
def test_derivatives(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Reverse, forward, dual numbers, reverse twice, forward over reverse, reverse over forward."""
    for cell in cells(manifold, shape, dtype):
        if cell.name in REFUSED:
            continue
        f = number(cell)
        at = tuple(a[0] for a in cell.arguments)
        along = tuple(torch.randn_like(a) for a in at)

        def step(t: float, at=at, along=along) -> tuple[Tensor, ...]:
            return tuple(a + t * d for a, d in zip(at, along, strict=True))

        first = slope(lambda t, f=f, step=step: f(step(t)))
        close(dot(grad(f)(at), along), first, f"{cell.name}, reverse")
        close(jvp(f, (at,), (along,))[1], first, f"{cell.name}, forward")
        with forward_ad.dual_level():
            dual = tuple(forward_ad.make_dual(a, d) for a, d in zip(at, along, strict=True))
            tangent = forward_ad.unpack_dual(f(dual)).tangent
        close(tangent, first, f"{cell.name}, dual numbers")

        def reverse(t: Tensor | float, f=f, step=step, along=along) -> Tensor:
            return dot(grad(f)(step(t)), along)  # type: ignore[arg-type]

        second = slope(reverse)

        def line(t: Tensor, f=f, step=step) -> Tensor:
            return f(step(t))  # type: ignore[arg-type]

        zero = torch.zeros((), dtype=REAL)
        leaf = zero.clone().requires_grad_()
        (slope_of,) = torch.autograd.grad(line(leaf), leaf, create_graph=True)
        found = {
            "reverse twice": torch.autograd.grad(slope_of, leaf)[0],
            "reverse twice, nested": grad(grad(line))(zero),
            "forward over reverse": hessian(line)(zero),
            "reverse over forward": jacrev(jacfwd(line))(zero),
            "forward twice": jacfwd(jacfwd(line))(zero),
        }
        for mode, value in found.items():
            close(value, second, f"{cell.name}, {mode}")


@sets
def test_vmap(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A map in vmap is a loop, and so are its gradient and its forward derivative."""
    for cell in cells(manifold, shape, dtype):
        ones = list(zip(*cell.arguments, strict=True))
        right = torch.stack([cell.call(*one) for one in ones])
        assert torch.allclose(vmap(cell.call)(*cell.arguments).to(dtype), right.to(dtype), rtol=0, atol=1e-12), cell
        if cell.name in REFUSED:
            continue
        f = number(cell)
        slopes = vmap(grad(f))(cell.arguments)
        for i, one in enumerate(ones):
            for a, b in zip(slopes, grad(f)(one), strict=True):
                close(a[i], b, f"{cell.name}, vmap over grad", 1e-11)
        total = grad(lambda given, f=f: vmap(f)(given).sum())(cell.arguments)
        for a, b in zip(total, slopes, strict=True):
            close(a, b, f"{cell.name}, grad over vmap", 1e-11)
        along = tuple(torch.randn_like(a) for a in cell.arguments)
        forward = vmap(lambda a, d, f=f: jvp(f, (a,), (d,))[1])(cell.arguments, along)
        close(forward.sum(), dot(slopes, along), f"{cell.name}, vmap over jvp", 1e-10)
        forward = jvp(lambda given, f=f: vmap(f)(given), (cell.arguments,), (along,))[1]
        close(forward.sum(), dot(slopes, along), f"{cell.name}, jvp over vmap", 1e-10)


@sets
def test_broadcasting(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One of the arguments and many of the others: a loop. Batch axes are as long as anything else may be: 2, 3, 4."""
    for cell in cells(manifold, shape, dtype):
        for alone in range(len(cell.arguments) if len(cell.arguments) > 1 else 0):
            for count in (2, 3):
                many = [a[:count] for a in cell.arguments]
                many[alone] = cell.arguments[alone][:1].expand(many[alone].shape)
                right = torch.stack([cell.call(*one) for one in zip(*many, strict=True)])
                for one in (cell.arguments[alone][0], cell.arguments[alone][:1]):
                    given = [a[:count] for a in cell.arguments]
                    given[alone] = one
                    close(cell.call(*given), right, f"{cell.name}, argument {alone} alone", 1e-12)


@sets
def test_points_of_another_shape_are_refused(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """They would broadcast within the point, and nothing would say so."""
    if not manifold.ndim:
        return
    for cell in cells(manifold, shape, dtype):
        if len(cell.arguments) > 1:
            given = list(cell.arguments)
            given[-1] = given[-1][..., :1]
            with pytest.raises(ValueError, match="one shape"):
                cell.call(*given)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (4, 4)])
def test_retractions_broadcast(retraction: retractions.Retraction, shape: tuple[int, int]) -> None:
    x = Stiefel().random(2, *shape, dtype=REAL)
    v = Stiefel().project(x[0], torch.randn(3, *shape, dtype=REAL))
    close(retraction(x[0], v), torch.stack([retraction(x[0], one) for one in v]), "one base", 1e-12)
    close(retraction(x, v[0]), torch.stack([retraction(one, v[0]) for one in x]), "one vector", 1e-12)
    with pytest.raises(ValueError, match="matrices of one shape"):
        retraction(x[0], v[..., :1])


# Where singular values meet, and where lengths vanish ---------------------------------------------------------------

GROUPS: list[tuple[Manifold, list[float], torch.dtype]] = [
    (m, s, d)
    for d in (REAL, COMPLEX)
    for m, s in (
        *((Orthogonal(), s) for s in ([1.0, 1, 1], [2.0, 2, 1])),
        *((SpecialOrthogonal(), s) for s in ([1.0, 1, 1], [2.0, 2, 1], [3.0, 2, -1], [2.0, 1, 0])),
        *((Stiefel(), s) for s in ([1.0, 1], [2.0, 1])),
    )
]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("manifold", "values", "dtype"), GROUPS, ids=[f"{m}-{s}-{d}" for m, s, d in GROUPS])
def test_nearest_has_derivatives_where_singular_values_meet(
    manifold: Manifold, values: list[float], dtype: torch.dtype, scale: float
) -> None:
    p = len(values)
    u, v = (SpecialOrthogonal().random(k, k, dtype=dtype) for k in (5 if p == 2 else p, p))
    a = scale * (u[:, :p] * torch.tensor(values, dtype=REAL)) @ v
    for at in (a, a.mH) if p == 2 else (a,):
        check_near(lambda b: manifold.nearest(scale * b), at / scale)


def check_near(nearest: Callable[[Tensor], Tensor], at: Tensor) -> None:
    f = number(Cell("nearest", nearest, (at[None],)))
    along = torch.randn_like(at)
    gradient = grad(lambda b: f((b,)))
    first = slope(lambda t: f((at + t * along,)))
    close(dot((gradient(at),), (along,)), first, "reverse")
    close(jvp(lambda b: f((b,)), (at,), (along,))[1], first, "forward")
    second = slope(lambda t: dot((gradient(at + t * along),), (along,)))
    close(dot((jvp(gradient, (at,), (along,))[1],), (along,)), second, "forward over reverse", 1e-6)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Sphere(), (4,)), (Sphere(), (1,)), (Euclidean(), (3,)), (Sphere(2.0, 2), (2, 2)), (Oblique(), (3, 2))],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, REAL, COMPLEX], ids=str)
def test_a_squared_distance_has_its_minimum_at_coincident_points(
    manifold: GeodesicManifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = manifold.random(*shape, dtype=dtype)
    for f in (lambda a: manifold.distance(a, x) ** 2, lambda a: manifold.norm(x, manifold.log(x, a)) ** 2):
        assert (grad(lambda a, f=f: f(a).sum())(x) == 0).all()
        assert (jvp(f, (x,), (x,))[1] == 0).all()


@pytest.mark.parametrize("manifold", [Stiefel(), Sphere(), Euclidean(), Stiefel**2, SpecialOrthogonal()], ids=str)
def test_a_norm_has_derivative_0_at_0(manifold: Manifold) -> None:
    x = manifold.random(4, 2, dtype=REAL) if not isinstance(manifold, SpecialOrthogonal) else torch.eye(3)
    assert (grad(lambda v: manifold.norm(x, v).sum())(torch.zeros_like(x)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, REAL], ids=str)
def test_second_derivatives_at_coincident_points_are_those_of_the_log(dtype: torch.dtype) -> None:
    """Of |log(x, y)|^2 / 2 along tangent vectors: the metric."""
    m = Sphere()
    x = m.random(4, dtype=dtype)
    u, v = (m.project(x, torch.randn(4, dtype=dtype)) for _ in range(2))
    h = hessian(lambda y: m.inner(x, m.log(x, y), m.log(x, y)) / 2)(x)
    torch.testing.assert_close(u @ h @ v, u @ v)


@pytest.mark.parametrize("dtype", [torch.float32, REAL], ids=str)
@pytest.mark.parametrize("t", [1e-30, 1e-12, 1e-6, 1e-3, 0.0099, 0.0101, 0.5, 3.0])
def test_angles_have_all_their_digits_near_0_and_near_pi(dtype: torch.dtype, t: float) -> None:
    m, few = Sphere(), 8 * torch.finfo(dtype).eps  # of four roundings
    x, v = torch.eye(3, dtype=dtype)[:2]
    y = m.exp(x, t * v)
    torch.testing.assert_close(m.distance(x, y), torch.tensor(t, dtype=dtype), rtol=few, atol=0)
    torch.testing.assert_close(m.log(x, y), t * v, rtol=few, atol=few * max(0, t - 1))
    w = m.log(x, -y)  # at pi - t, the other way
    torch.testing.assert_close(w, -(torch.pi - t) * v, rtol=few, atol=few)


@pytest.mark.parametrize("dtype", [torch.float32, REAL, COMPLEX], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_log_of_the_antipode_is_tangent_of_length_pi(dtype: torch.dtype, n: int) -> None:
    m = Sphere()
    x = m.random(6, n, dtype=dtype)
    for v in (m.log(x, -x), vmap(m.log)(x, -x)):
        if n == 1 and not dtype.is_complex:  # two points, and no way from one to the other
            assert v.isnan().all()
            continue
        few = 8 * torch.finfo(dtype).eps
        assert (m.norm(x, v) - torch.pi).abs().max() <= 4 * few
        assert (v - m.project(x, v)).abs().max() <= few
        assert (m.exp(x, v) + x).abs().max() <= 8 * few
