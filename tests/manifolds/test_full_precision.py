"""Maps of points are in the precision of their tensors, whatever autocast and the settings of products say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from manifolds import (
    DoublyStochastic,
    GeodesicManifold,
    Hurwitz,
    Hyperboloid,
    Invertible,
    Isospectral,
    LowRank,
    Manifold,
    NearestPointManifold,
    Orthostochastic,
    PositiveSemidefinite,
    Scaled,
    SpectralBall,
    SpectralSphere,
    Stiefel,
    retractions,
    tolerance,
)
from manifolds.kernels.precision import in_full_precision
from tests.sets import EVERY

BOTH: list[Any] = [*EVERY, Stiefel**2]
COMPOSED: list[Any] = [
    *(Hurwitz(), Invertible(), Isospectral(), LowRank(2), Orthostochastic(), PositiveSemidefinite(2)),
    *(Scaled(Stiefel), SpectralBall(), SpectralSphere(), Scaled(Stiefel) ** 2),
]
bfloat16 = torch.autocast("cpu", torch.bfloat16)


def allowed() -> str:
    """Torch 2.9 and later have a setting for each kind of device."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return torch.get_float32_matmul_precision()
    every = {torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision}
    return "highest" if every <= {"ieee", "none"} else str(every)


class Products(TorchFunctionMode):
    """What is allowed inside of float32 where torch multiplies, factors or solves, on any machine: few processors make
    use of it."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if any(part in name for part in ("mm", "matmul", "linalg", "solve", "einsum", "cholesky")):
            self.allowed.append(allowed())
        return function(*args, **(options or {}))


@contextmanager
def lowered() -> Iterator[Products]:
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Products() as products:
            yield products
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(kept)


def maps(m: Any, x: Tensor, y: Tensor, a: Tensor) -> dict[str, Callable[[], Tensor]]:
    v = m.project(x, 0.1 * a)
    found: dict[str, Callable[[], Tensor]] = {
        "project": lambda: m.project(x, a),
        "gradient": lambda: m.gradient(x, a),
        "retract": lambda: m.retract(x, v),
        "transport": lambda: m.transport(x, y, v),
        "inner": lambda: m.inner(x, v, v),
        "norm": lambda: m.norm(x, v),
        "residual": lambda: m.residual(x),
        "random": lambda: m.random(*x.shape, generator=torch.Generator().manual_seed(2)),
        "random_tangent": lambda: m.random_tangent(x, generator=torch.Generator().manual_seed(2)),
    }
    if isinstance(m, NearestPointManifold):
        found["nearest"] = lambda: m.nearest(x + 0.1 * a)
    if isinstance(m, GeodesicManifold):
        found |= {
            "exp": lambda: m.exp(x, v),
            "log": lambda: m.log(x, m.exp(x, v)),
            "distance": lambda: m.distance(x, m.exp(x, v)),
            "mean": lambda: m.mean(torch.stack([x, m.exp(x, v)])),
        }
    return found


def shape(m: Manifold) -> tuple[int, int]:
    return (6, 6) if "Grassmann" not in repr(m) else (6, 3)


@pytest.mark.parametrize("m", BOTH, ids=str)
def test_every_map_is_as_exact_under_autocast_as_without(m: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (m.random(*shape(m), generator=generator) for _ in range(2))
    for name, each in maps(m, x, y, torch.randn(x.shape, generator=generator)).items():
        expected = each()
        with bfloat16:
            found = each()
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("m", BOTH, ids=str)
def test_every_map_has_full_products_where_the_model_has_not(m: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (m.random(*shape(m), generator=generator) for _ in range(2))
    each = maps(m, x, y, torch.randn(x.shape, generator=generator))
    for name in each:
        expected = each[name]()
        with lowered() as products:
            found = each[name]()
        assert set(products.allowed) <= {"highest"}, name
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("m", EVERY, ids=str)
def test_what_a_network_gives_in_half_precision_is_taken_as_float32(m: Any) -> None:
    """The tangent vector is bfloat16, the point and what comes of it are not; derivatives reach it in its dtype."""
    generator = torch.Generator().manual_seed(0)
    x = m.random(*shape(m), generator=generator)
    a = (0.01 * torch.randn(x.shape, generator=generator)).bfloat16().requires_grad_()
    with bfloat16:
        y = m.retract(x, m.project(x, a))
    assert y.dtype == torch.float32
    assert bool(m.contains(y.detach()).all())
    (grad,) = torch.autograd.grad(y.sum(), a)
    assert grad.dtype == torch.bfloat16
    assert bool(grad.isfinite().all())


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("m", BOTH, ids=str)
def test_in_half_precision_a_map_is_that_of_float32_rounded(m: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (m.random(*shape(m), generator=generator, dtype=dtype) for _ in range(2))
    assert x.dtype == dtype
    again = m.random(*shape(m), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again.to(dtype))
    assert float(m.residual(x.float()).max()) <= 8 * torch.finfo(dtype).eps
    a = torch.randn(x.shape, generator=generator).to(dtype)
    v = m.project(x, 0.1 * a)
    given: list[tuple[str, tuple[Tensor, ...]]] = [
        *(("project", (x, a)), ("gradient", (x, a)), ("retract", (x, v)), ("transport", (x, y, v)), ("norm", (x, v))),
        *(("inner", (x, v, v)), ("residual", (x,)), ("random_tangent", (x,))),
    ]
    if isinstance(m, NearestPointManifold):
        given += [("nearest", (x + a,))]
    if isinstance(m, GeodesicManifold):
        given += [("exp", (x, v)), ("log", (x, x)), ("distance", (x, x)), ("mean", (torch.stack([x, x]),))]

    def value(name: str, *tensors: Tensor) -> Tensor:
        options: Any = {"generator": torch.Generator().manual_seed(3)} if name == "random_tangent" else {}
        found: Tensor = getattr(m, name)(*tensors, **options)
        return found

    for name, tensors in given:
        found, expected = value(name, *tensors), value(name, *(each.float() for each in tensors))
        assert found.dtype == dtype, name
        assert torch.equal(found, expected.to(dtype)), name
        with bfloat16:
            assert torch.equal(value(name, *tensors), expected), name
    assert m.retract(x.float(), v).dtype == torch.float32  # the dtype of the point
    assert m.retract(x, v.float()).dtype == dtype
    if isinstance(m, GeodesicManifold):
        for weights in (torch.ones(2), torch.ones(2, dtype=torch.float64)):
            assert m.mean(torch.stack([x, x], -m.ndim - 1), weights).dtype == dtype
        for point in (x, x.float()):
            assert m.geodesic(point, point, torch.tensor(0.5, dtype=torch.float64)).dtype == point.dtype
    slope = v.clone().requires_grad_()
    (grad,) = torch.autograd.grad(m.retract(x, slope).sum(), slope)
    assert grad.dtype == dtype
    assert tolerance(torch.float32) == 128 * torch.finfo(torch.float32).eps  # outside of these maps as ever


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("m", COMPOSED, ids=str)
def test_in_half_precision_what_is_composed_is_that_of_float32_rounded(m: Any, dtype: torch.dtype) -> None:
    x = m.random(6, 6, generator=torch.Generator().manual_seed(0))
    rounded = m.random(6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(rounded, x.to(dtype))
    points = m.random_points((6, 6), generator=torch.Generator().manual_seed(0), dtype=dtype)
    made = m.compose(**points)
    assert made.dtype == dtype
    assert torch.equal(made, m.compose(**{name: point.float() for name, point in points.items()}).to(dtype))
    assert m.residual(rounded).dtype == dtype
    assert all(part.dtype == dtype for part in m.decompose(rounded).values())


@pytest.mark.parametrize("other", [Hyperboloid(), DoublyStochastic()], ids=str)
def test_a_rounded_point_of_a_set_without_nearest_is_one(other: Any) -> None:
    m: Any = LowRank(2) * other
    for dtype in HALF:
        x = m.random(8, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        assert float(m.residual(x)) <= 8 * torch.finfo(dtype).eps
        assert all(part.dtype == dtype for part in m.decompose(x).values())


def test_checks_inside_of_a_map_allow_what_the_coarsest_of_its_tensors_is_rounded_by() -> None:
    @in_full_precision
    def allowed(x: Tensor, y: Tensor) -> Tensor:
        assert x.dtype == y.dtype == torch.float32
        return torch.tensor(tolerance(x.dtype))

    coarse, fine = (torch.ones(2, dtype=dtype) for dtype in HALF)
    for one, other in ((coarse, fine), (fine, coarse), (coarse.float(), coarse), (coarse, coarse.float())):
        assert float(allowed(one, other)) == tolerance(torch.bfloat16)


@pytest.mark.parametrize("m", [Stiefel(), Stiefel() ** 2, PositiveSemidefinite(2)], ids=str)
def test_what_is_drawn_is_of_the_default_dtype(m: Any) -> None:
    try:
        for dtype in (*HALF, torch.float64):
            torch.set_default_dtype(dtype)
            assert m.random(4, 4).dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    """Where torch raises for what is not, and fills what has no value yet with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("setting", [deterministic, torch.autograd.detect_anomaly], ids=["deterministic", "anomaly"])
@pytest.mark.parametrize("m", BOTH, ids=str)
def test_every_map_and_its_derivative_is_the_same_where_torch_looks_closer(m: Any, setting: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (m.random(*shape(m), generator=generator).requires_grad_() for _ in range(2))
    a = torch.randn(x.shape, generator=generator).requires_grad_()

    def each() -> Iterator[tuple[str, Tensor]]:
        for name in maps(m, x, y, a):
            yield name, (found := maps(m, x, y, a)[name]())
            if found.requires_grad:
                for grad in torch.autograd.grad(found.sum(), (x, y, a), allow_unused=True):
                    if grad is not None:
                        yield name, grad

    expected = list(each())
    with setting():
        found = list(each())
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, one), (_, other) in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


@pytest.mark.parametrize("m", COMPOSED, ids=str)
def test_what_is_composed_is_as_exact_under_autocast(m: Any) -> None:
    x = m.random(6, 6, generator=torch.Generator().manual_seed(0))
    with bfloat16:
        assert torch.equal(m.random(6, 6, generator=torch.Generator().manual_seed(0)), x)
        points = m.decompose(x)
        back = m.compose(**points)
    with lowered() as products:
        m.random(6, 6)
        m.compose(**m.decompose(x))
    assert set(products.allowed) <= {"highest"}
    assert torch.equal(back, m.compose(**m.decompose(x)))


@pytest.mark.parametrize("n", [4, 200])
@pytest.mark.parametrize("name", ["cayley", "exp", "qr", "polar"])
def test_retractions_are_as_exact_under_autocast(name: str, n: int) -> None:
    x = Stiefel().random(n, n, generator=torch.Generator().manual_seed(0))
    v = Stiefel().random_tangent(x, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = getattr(retractions, name)(x, v)
    with bfloat16:
        found = getattr(retractions, name)(x, v)
        (grad,) = torch.autograd.grad(found.square().sum(), v)
    with lowered() as products:
        getattr(retractions, name)(x, v)
    assert set(products.allowed) == {"highest"}
    assert torch.equal(found, expected)
    assert grad.dtype == torch.float32
