"""Tensors that are maps of several points: what they can be, what they cannot, and their derivatives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor

from manifolds import (
    BlockSpec,
    Composition,
    Euclidean,
    Hurwitz,
    Invertible,
    Isospectral,
    LowRank,
    Orthostochastic,
    PositiveSemidefinite,
    Scaled,
    SpectralBall,
    SpectralSphere,
    Sphere,
    Stiefel,
)
from manifolds.compositions import ComposedProduct

CASES: list[tuple[Composition, tuple[int, ...]]] = [
    (LowRank(2), (6, 4)),
    (LowRank(3), (2, 4, 7)),
    (SpectralBall(0.7), (6, 4)),
    (SpectralBall(), (3, 6)),
    (SpectralBall(2.0), (2, 4, 4)),
    (SpectralSphere(1.5), (5, 3)),
    (SpectralSphere(), (3, 5)),
    (Isospectral(), (5, 3)),
    (Isospectral(), (2, 3, 3)),
    (PositiveSemidefinite(), (4, 4)),
    (PositiveSemidefinite(rank=2), (2, 5, 5)),
    (Orthostochastic(), (4, 4)),
    (Scaled(Stiefel()), (2, 5, 3)),
    (Scaled(Stiefel**3), (12, 4)),
    (Scaled(Sphere()), (3, 4)),
    (Invertible(), (4, 4)),
    (Invertible(), (2, 3, 3)),
    (Hurwitz(), (3, 3)),
    (Hurwitz(0.5), (2, 3, 3)),
    (LowRank(2) ** 3, (12, 5)),
    (LowRank(2) * Stiefel * LowRank(2), (12, 4)),
    (ComposedProduct((SpectralBall(), LowRank(1)), BlockSpec(rows=(2, 5))), (7, 3)),
    (ComposedProduct((LowRank(1),) * 6, BlockSpec.pattern("(h q d) e -> (h q) d e", h=2, q=3)), (12, 5)),
]
names = [f"{c}, {s}" for c, s in CASES]
real = {"Orthostochastic"}  # its decomposition is that of real matrices
every_case = pytest.mark.parametrize(("composition", "shape"), CASES, ids=names)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@every_case
@dtypes
def test_decompose_inverts_compose(composition: Composition, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if dtype.is_complex and str(composition) in real:
        pytest.skip("of real matrices")
    x = composition.random(*shape, generator=generator(), dtype=dtype)
    assert x.shape == shape
    assert x.dtype == dtype
    points, parts = composition.decompose(x), composition.parts(shape)
    assert list(points) == list(parts)
    for name, (manifold, part) in parts.items():
        assert points[name].shape == part
        assert manifold is None or bool(manifold.contains(points[name]).all())
    # three products of matrices below 3 in norm, and cuts of the boundary by eps
    torch.testing.assert_close(composition.made(points, shape), x, rtol=0, atol=64 * torch.finfo(dtype).eps)
    assert float(composition.residual(x).max()) <= 64 * torch.finfo(dtype).eps


def test_stable_matrices_are_told_by_scipy() -> None:
    a = torch.randn(5, 5, dtype=torch.float64, generator=generator())
    a -= (float(torch.linalg.eigvals(a).real.max()) + 0.3) * torch.eye(5)
    p = Hurwitz(0.2).decompose(a)["p"]
    shifted = (a + 0.2 * torch.eye(5, dtype=torch.float64)).numpy()
    expected = torch.as_tensor(solve_continuous_lyapunov(shifted.T, -np.eye(5)))
    torch.testing.assert_close(p, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"real part is not below -0\.5"):
        Hurwitz(0.5).decompose(a)
    x = Hurwitz(0.4).random(200, 4, 4, dtype=torch.float64)
    assert float(torch.linalg.eigvals(x).real.max()) < -0.4


def test_a_negative_determinant_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 matrices"):
        Invertible().decompose(torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1, -1]))]))
    with pytest.raises(ValueError, match="not positive"):
        Invertible().decompose(torch.zeros(3, 3))
    assert bool((torch.linalg.det(Invertible().random(100, 3, 3)) > 0).all())


@every_case
def test_compose_has_right_derivatives_in_every_part(composition: Composition, shape: tuple[int, ...]) -> None:
    points = composition.random_points(shape, generator(), torch.float64)
    leaves = [p.requires_grad_() for p in points.values()]

    def made(*tensors: Tensor) -> Tensor:
        return composition.made(dict(zip(points, tensors, strict=True)), shape)

    assert torch.autograd.gradcheck(made, leaves)
    assert torch.autograd.gradgradcheck(made, leaves)


@every_case
def test_a_composition_is_a_value(composition: Composition, shape: tuple[int, ...]) -> None:
    copy = pickle.loads(pickle.dumps(composition))
    assert copy == composition
    assert hash(copy) == hash(composition)


@pytest.mark.parametrize(
    ("composition", "shape", "dim"),
    [
        (LowRank(2), (6, 4), 9 + 2 + 5),  # St(6, 2), two values, St(4, 2)
        (LowRank(2) ** 3, (18, 4), 3 * 16),
        (LowRank(2) * Stiefel, (8, 4), 5 + 2 + 5 + 6),
        (SpectralBall(), (6, 4), 40 - 10),  # St(10, 4)
        (Isospectral(), (5, 3), 9 + 3),  # St(5, 3), O(3), constant values
        (PositiveSemidefinite(rank=2), (5, 5), 10),
        (Orthostochastic(), (4, 4), 6),
        (Scaled(Stiefel**3), (12, 4), 3 + 18),
        (Invertible(), (3, 3), 3 + 6),
        (Hurwitz(), (3, 3), 6 + 6 + 3),
    ],
    ids=str,
)
def test_degrees_of_freedom_are_those_of_the_parts(composition: Composition, shape: tuple[int, ...], dim: int) -> None:
    assert composition.dim(shape) == dim


@pytest.mark.parametrize("seed", range(3))
def test_decompositions_are_of_the_nearest_matrix(seed: int) -> None:
    """Singular values, or eigenvalues, cut to what is allowed: Eckart & Young, Mirsky, and a search that finds no
    better one."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    expected = {
        LowRank(1): s * torch.tensor([1.0, 0, 0], dtype=torch.float64),
        SpectralBall(0.9): s.clamp(max=0.9),
        SpectralSphere(0.9): torch.cat([torch.tensor([0.9], dtype=torch.float64), s[1:].clamp(max=0.9)]),
        SpectralSphere(9.0): torch.cat([torch.tensor([9.0], dtype=torch.float64), s[1:]]),
        Isospectral(): s,
    }
    for composition, values in expected.items():
        near = composition.compose(**composition.decompose(x))
        torch.testing.assert_close(near, (u * values) @ vh, rtol=0, atol=1e-14)
        for _ in range(20):
            other = composition.random(5, 3, dtype=torch.float64)
            assert float((other - x).norm()) >= float((near - x).norm()) - 1e-12 or composition == Isospectral()
    y = x[:3]
    values, vectors = torch.linalg.eigh((y + y.mT) / 2)
    near = PositiveSemidefinite().compose(**PositiveSemidefinite().decompose(y))
    torch.testing.assert_close(near, (vectors * values.clamp_min(0)) @ vectors.mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "composition", [LowRank(3), SpectralBall(), SpectralSphere(), Isospectral(), PositiveSemidefinite()], ids=str
)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_equal_singular_values_have_derivatives(composition: Composition, scale: float) -> None:
    """Nothing is divided by a difference of singular values, nor by one of them."""
    x = scale * torch.eye(4, 4, dtype=torch.float64)
    points = {name: p.requires_grad_() for name, p in composition.decompose(x).items()}
    if composition == SpectralSphere() and scale == 0:
        assert float(composition.compose(**composition.decompose(x)).norm()) == pytest.approx(1)
    weight = composition.compose(**points)
    grads = torch.autograd.grad((weight - torch.randn(4, 4, dtype=torch.float64)).square().sum(), [*points.values()])
    assert all(bool(g.isfinite().all()) for g in grads)


def test_orthostochastic_matrices_are_told_from_others() -> None:
    hadamard = torch.full((4, 4), 0.25, dtype=torch.float64)
    q = Orthostochastic().decompose(hadamard)["q"]
    torch.testing.assert_close(q.square(), hadamard, rtol=0, atol=1e-13)
    assert float(torch.linalg.det(q)) == pytest.approx(1)
    permutation = torch.eye(4, dtype=torch.float64)[[1, 2, 3, 0]]
    torch.testing.assert_close(Orthostochastic().decompose(permutation)["q"].square(), permutation, rtol=0, atol=1e-13)
    # Bengtsson et al.: no rotation has the squared entries of (J - I) / 2, whose columns could not be orthogonal
    with pytest.raises(ValueError, match="no rotation was found"):
        Orthostochastic().decompose((torch.ones(3, 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64)) / 2)
    with pytest.raises(ValueError, match="rows and columns sum to one"):
        Orthostochastic().decompose(torch.ones(3, 3))


def test_a_ball_contains_its_boundary_to_rounding_and_gradients_lead_inside() -> None:
    q = Stiefel().random(4, 4, generator=generator())
    points = SpectralBall().decompose(q)
    torch.testing.assert_close(SpectralBall().compose(**points), q, rtol=0, atol=8 * torch.finfo(q.dtype).eps)
    p = points["q"].requires_grad_()
    SpectralBall().compose(q=p).square().sum().backward()
    assert p.grad is not None
    inside = Stiefel().gradient(p.detach(), p.grad)
    assert float(inside[4:].norm()) > 0


def test_the_algebra_of_products_takes_compositions() -> None:
    assert repr(LowRank(2) ** 3) == "LowRank(rank=2)**3"
    product = Stiefel * LowRank(2)
    assert isinstance(product, ComposedProduct)
    assert product.factors == (Stiefel(), LowRank(2))
    assert (Isospectral**2).factors == (Isospectral(), Isospectral())
    assert (Stiefel**2 * LowRank(2)).factors == (Stiefel(), Stiefel(), LowRank(2))
    assert (LowRank(2) * Euclidean).factors == (LowRank(2), Euclidean())
    x = (LowRank(2) ** 3).random(12, 5, generator=generator())
    torch.testing.assert_close((LowRank(2) ** 3).compose(**(LowRank(2) ** 3).decompose(x)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(0), "rank of LowRank"),
        (lambda: LowRank(5).parts((6, 4)), "min\\(n, m\\) >= 5"),
        (lambda: SpectralBall(-1.0), "radius of SpectralBall"),
        (lambda: SpectralSphere(float("inf")), "radius of SpectralSphere"),
        (lambda: PositiveSemidefinite(0), "rank of PositiveSemidefinite"),
        (lambda: PositiveSemidefinite().parts((4, 3)), "square"),
        (lambda: Orthostochastic().parts((4, 3)), "square"),
        (lambda: LowRank(2).parts((4,)), "2 axes"),
        (lambda: (LowRank(2) ** 3).parts((13, 5)), "divide"),
        (lambda: LowRank(2) ** 0, "k >= 1"),
        (lambda: Scaled(3), "takes a manifold"),  # type: ignore[arg-type]
        (lambda: Scaled(Sphere()).decompose(torch.zeros(2, 3)), "zero vector"),
        (lambda: LowRank(2) * 3, "a product is taken"),
        (lambda: (LowRank(2) * Stiefel).compose(u0=torch.zeros(1)), "needs shape="),
    ],
)
def test_what_is_no_composition_is_refused(make: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()  # type: ignore[operator]


@every_case
def test_what_is_not_finite_has_no_parts_and_spoils_nothing_beside_it(
    composition: Composition, shape: tuple[int, ...]
) -> None:
    x = composition.random(2, *shape, generator=torch.Generator().manual_seed(0)).contiguous()
    for bad in (torch.nan, torch.inf):
        x[0].view(-1)[0] = bad
        with pytest.raises(ValueError, match=r"NaN|infinite|multiple"):
            composition.decompose(x)
        residual = composition.residual(x)
        assert bool(residual[0].isnan().any())
        assert bool(residual[1].isfinite().all())
    assert bool(composition.residual(x[0]).isnan().any())


@every_case
def test_a_batch_of_tensors_may_be_empty(composition: Composition, shape: tuple[int, ...]) -> None:
    x = composition.random(0, *shape)
    points = composition.decompose(x)
    assert {name: tuple(p.shape) for name, p in points.items()} == {
        name: part for name, (_, part) in composition.parts((0, *shape)).items()
    }
    assert composition.made(points, x.shape).shape == (0, *shape)
    assert composition.residual(x).numel() == 0


def test_orthostochastic_matrices_are_real() -> None:
    with pytest.raises(ValueError, match="are real"):
        Orthostochastic().decompose(torch.eye(2, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_what_is_not_invertible_is_told_what_makes_it_so(dtype: torch.dtype) -> None:
    """Where anything does: a singular matrix is singular with a row of another sign."""
    x = torch.randn(5, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    phase = torch.linalg.det(x) / torch.linalg.det(x).abs()
    x[:, 0] /= phase[:, None]
    x[0, 0] *= -1
    way = "Divide a row of each by det / " if dtype.is_complex else "Flip the sign of a row of each"
    with pytest.raises(ValueError, match=way):
        Invertible().decompose(x)
    x[0, 1] /= torch.linalg.det(x)[0] / torch.linalg.det(x)[0].abs()
    q, p = Invertible().decompose(x).values()
    torch.testing.assert_close(q @ p, x)
    x[0, 2] = 0
    for singular in (torch.zeros_like(x), x):
        with pytest.raises(ValueError, match="Give others, as the method random"):
            Invertible().decompose(singular)
