"""The orthogonal and unitary groups, rotations and SU(n): determinants, nearest points and errors."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from manifolds import Orthogonal, SpecialOrthogonal, Stiefel, retractions
from manifolds.engine import engine
from manifolds.kernels.rotation import turned

RETRACTIONS = (retractions.polar, retractions.qr, retractions.cayley, retractions.exp)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
double = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
every_retraction = pytest.mark.parametrize("retraction", RETRACTIONS, ids=lambda r: r.__name__)


def close(a: Tensor, b: Tensor, atol: float = 1e-13) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Nearest points ------------------------------------------------------------------------------------------------


@double
@pytest.mark.parametrize("n", [1, 2, 5])
def test_nearest_is_scipys_polar_factor(dtype: torch.dtype, n: int) -> None:
    z = torch.randn(3, n, n, dtype=dtype)
    expected = np.stack([scipy.linalg.polar(m.numpy())[0] for m in z])
    close(Orthogonal().nearest(z), torch.as_tensor(expected))
    close(Stiefel().nearest(z), torch.as_tensor(expected))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_rotation_is_a_rotation(n: int, dtype: torch.dtype) -> None:
    """Also at multiples of rotations, and where singular values are far apart."""
    z = torch.randn(200, n, n, dtype=dtype)
    same = Orthogonal().nearest(z)
    spread = same * torch.logspace(0, -4, n, dtype=z.real.dtype)
    for start in (z, SpecialOrthogonal().random(200, n, n, dtype=dtype) * 7, spread):
        x = SpecialOrthogonal().nearest(start)
        assert SpecialOrthogonal().contains(x).all()
        assert (torch.linalg.det(x) - 1).abs().max() < 300 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_nearest_rotation_flips_the_smallest_singular_value(n: int) -> None:
    """Kabsch: W diag(1, ..., 1, det(W V^H)) V^H, the best of all sign patterns with determinant 1."""
    z = torch.randn(20, n, n, dtype=torch.float64)
    x = SpecialOrthogonal().nearest(z)
    w, _, vh = torch.linalg.svd(z)
    patterns = [torch.tensor(p, dtype=torch.float64) for p in itertools.product((1.0, -1.0), repeat=n)]
    candidates = torch.stack([(w * p) @ vh for p in patterns])
    distance = (candidates - z).norm(dim=(-2, -1)).masked_fill(torch.linalg.det(candidates) < 0, math.inf)
    close((x - z).norm(dim=(-2, -1)), distance.amin(0))


def best_phases(s: Tensor, total: float, count: int = 20_000) -> float:
    """max of sum s_i cos(phi_i) over angles that sum to total (mod 2 pi), by random search and refinement."""
    generator = torch.Generator().manual_seed(0)
    phi = (2 * torch.rand(count, len(s), generator=generator, dtype=s.dtype) - 1) * math.pi
    width = math.pi
    for _ in range(60):
        phi[:, -1] = total - phi[:, :-1].sum(-1)
        value = (s * phi.cos()).sum(-1)
        best = phi[value.argmax()]
        width *= 0.7
        phi = best + width * torch.randn(count, len(s), generator=generator, dtype=s.dtype)
        phi[0] = best
    phi[:, -1] = total - phi[:, :-1].sum(-1)
    return float((s * phi.cos()).sum(-1).max())


@pytest.mark.parametrize("total", [0.3, -2.0, 3.0, 3.1415, -math.pi, math.pi])
@pytest.mark.parametrize(
    "s",
    [
        [1.0, 1.0],
        [2.0, 1.0],
        [1.0, 1.0, 1.0],
        [3.0, 2.0, 0.1],
        [3.0, 1.0, 1.0],
        [1.0, 0.9, 0.8, 0.7],
        [5.0, 1.0, 0.3, 0.3],
    ],
    ids=str,
)
def test_nearest_special_unitary_point_is_the_best_of_a_brute_force_search(s: list[float], total: float) -> None:
    """Z = W S V^H, det(W V^H) = e^(i total): |X - Z|^2 = n + |S|^2 - 2 sum s_i cos(phi_i), where sum phi_i = total."""
    n, values = len(s), torch.tensor(s, dtype=torch.float64)
    w, v = (SpecialOrthogonal().random(n, n, dtype=torch.complex128) for _ in range(2))
    w[:, 0] *= complex(math.cos(total), math.sin(total))
    z = (w * values) @ v
    m = SpecialOrthogonal()
    if abs(total) == math.pi and sum(s[-1] / one for one in s[:-1]) >= 1:  # -pi is as good, and elsewhere
        with pytest.raises(ValueError, match="several nearest matrices of determinant 1"):
            m.nearest(z)
    else:
        torch.testing.assert_close(m.nearest(z), turned(*torch.linalg.svd(z)), rtol=0, atol=1e-12)
    x = turned(*torch.linalg.svd(z))
    assert m.contains(x)
    reached = (n + float((values**2).sum()) - float((x - z).norm() ** 2)) / 2
    assert reached >= best_phases(values, total) - 1e-9


def test_no_special_unitary_point_near_by_is_nearer() -> None:
    z = torch.randn(50, 3, 3, dtype=torch.complex128)
    m = SpecialOrthogonal(retractions.exp)
    x = m.nearest(z)
    for length in (1e-3, 0.1, 1.0):
        v = m.project(x, torch.randn_like(z))
        y = m.retract(x, length * v / v.norm(dim=(-2, -1), keepdim=True))
        assert ((y - z).norm(dim=(-2, -1)) >= (x - z).norm(dim=(-2, -1))).all()


# Determinants --------------------------------------------------------------------------------------------------


@every_retraction
@pytest.mark.parametrize("length", [0.1, 3.0, 30.0])
def test_determinant_is_kept_on_the_way(retraction: retractions.Retraction, length: float) -> None:
    """+1 or -1 in O(n); on SU(n) exactly 1."""
    x = Orthogonal().random(40, 3, 3, dtype=torch.float64)
    m = Orthogonal(retraction)
    v = length * m.project(x, torch.randn_like(x))
    close(torch.linalg.det(m.retract(x, v)), torch.linalg.det(x), atol=1e-9)
    close(torch.linalg.det(engine(m).move(x, engine(m).coordinates(x, v))), torch.linalg.det(x), atol=1e-9)
    s = SpecialOrthogonal(retraction)
    x = s.random(40, 3, 3, dtype=torch.complex128)
    v = length * s.project(x, torch.randn_like(x))
    close(torch.linalg.det(s.retract(x, v)), torch.ones(40, dtype=torch.complex128), atol=1e-9)


@double
def test_reflections_and_phases_are_no_rotations(dtype: torch.dtype) -> None:
    x = torch.eye(3, dtype=dtype)
    x[0, 0] = -1
    assert Orthogonal().contains(x)
    assert not SpecialOrthogonal().contains(x)
    assert SpecialOrthogonal().residual(x) > 0.5
    if dtype.is_complex:
        x[0, 0] = complex(math.cos(1e-3), math.sin(1e-3))
        assert Orthogonal().contains(x)
        assert not SpecialOrthogonal().contains(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
@pytest.mark.parametrize("n", [100, 600])
def test_rotations_of_many_dimensions_are_rotations(n: int, dtype: torch.dtype) -> None:
    """The product of the pivots of a large matrix underflows on its way to a determinant of 1."""
    group = SpecialOrthogonal()
    random, start = group.random(2, n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    near = group.nearest(start)
    step = group.retract(near, group.project(near, start / n))
    move = engine(group).advance(near[None], engine(group).lift(near, start)[None] / n, 0.5)
    for x in (*random, near, step, *move):
        assert group.contains(x)
        phase, size = np.linalg.slogdet(x.numpy().astype(complex))
        assert abs(phase - 1) <= 1e-3
        assert abs(size) <= 1e-3
    turned = near.clone()
    turned[0] *= -1
    assert not group.contains(turned)
    assert group.residual(turned) == pytest.approx(2.0 if not dtype.is_complex else 2 / n, rel=1e-2)


def test_the_real_residual_of_a_reflection_is_two() -> None:
    close(SpecialOrthogonal().residual(-torch.eye(3, dtype=torch.float64)), torch.tensor(2.0, dtype=torch.float64))


@double
def test_polish_squares_the_error(dtype: torch.dtype) -> None:
    """Newton-Schulz: e becomes 3/4 e^2 and higher order."""
    z = Orthogonal().random(20, 4, 4, dtype=dtype) + 1e-4 * torch.randn(20, 4, 4, dtype=dtype)
    before = Orthogonal().residual(z)
    for manifold in (Orthogonal(), Stiefel()):
        assert (manifold.residual(engine(manifold).polish(z)) <= 4 * before**2).all()


@double
def test_transport_is_an_isometry_and_a_group_action(dtype: torch.dtype) -> None:
    m = Orthogonal()
    x, y, z = m.random(3, 4, 4, dtype=dtype)
    u, v = (m.project(x, torch.randn(4, 4, dtype=dtype)) for _ in range(2))
    close(m.inner(y, m.transport(x, y, u), m.transport(x, y, v)), m.inner(x, u, v))
    close(m.transport(y, z, m.transport(x, y, u)), m.transport(x, z, u))


def test_tangent_vectors_of_su_are_traceless() -> None:
    x = SpecialOrthogonal().random(4, 4, dtype=torch.complex128)
    v = SpecialOrthogonal().project(x, torch.randn(4, 4, dtype=torch.complex128))
    close((x.mH @ v).trace(), torch.zeros((), dtype=torch.complex128))


# Degrees of freedom and errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), [((1, 1), 0), ((2, 2), 1), ((3, 3), 3), ((5, 4, 4), 30)])
def test_degrees_of_freedom(shape: tuple[int, ...], dim: int) -> None:
    assert Orthogonal().dim(shape) == SpecialOrthogonal().dim(shape) == Stiefel().dim(shape) == dim


@pytest.mark.parametrize(("shape", "dim"), [((5, 3), 9), ((3, 5), 9), ((4, 1), 3), ((1, 4), 3), ((2, 5, 3), 18)])
def test_degrees_of_freedom_of_stiefel(shape: tuple[int, ...], dim: int) -> None:
    assert Stiefel().dim(shape) == dim


@pytest.mark.parametrize("group", [Orthogonal(), SpecialOrthogonal()], ids=str)
def test_a_matrix_that_is_not_square_is_an_error_with_a_way_out(group: Orthogonal | SpecialOrthogonal) -> None:
    x = torch.zeros(9, 3)
    message = re.escape(f"{group} holds square matrices; got shape (9, 3).") + r".*such as \w+\*\*3\."
    calls = [
        lambda: group.dim((9, 3)),
        lambda: group.random(9, 3),
        lambda: group.nearest(x),
        lambda: group.project(x, x),
        lambda: group.residual(x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("manifold", [Orthogonal(), SpecialOrthogonal(), Stiefel()], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_to_what_is_not_finite_is_an_error(manifold: Stiefel, bad: float, dtype: torch.dtype) -> None:
    x = torch.eye(3, dtype=dtype)
    x[1, 2] = bad
    with pytest.raises(ValueError, match=r"shape \(3, 3\) has NaN or infinite entries"):
        manifold.nearest(x)


@pytest.mark.parametrize("manifold", [Orthogonal(), SpecialOrthogonal(), Stiefel()], ids=str)
def test_nearest_to_deficient_rank_is_an_error_that_counts(manifold: Stiefel) -> None:
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    x[1] = 0
    x[3] = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"2 of 5 matrices of shape \(3, 3\) have deficient rank"):
        manifold.nearest(x)


@pytest.mark.parametrize("shape", [(3,), (), (0, 3), (3, 0)], ids=str)
def test_too_few_axes_or_empty_ones_are_an_error(shape: tuple[int, ...]) -> None:
    for manifold, name in (
        (Stiefel(), "Stiefel"),
        (Orthogonal(), "Orthogonal"),
        (SpecialOrthogonal(), "SpecialOrthogonal"),
    ):
        with pytest.raises(
            ValueError, match=re.escape(f"a point of {name} has 2 axes of size 1 or more; got shape {shape}")
        ):
            manifold.dim(shape)


def test_options_of_stiefel_are_checked() -> None:
    with pytest.raises(ValueError, match="the metric of Stiefel is 'euclidean' or 'canonical'; got 'flat'"):
        Stiefel("flat")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("the retraction of Stiefel is a function (x, v) -> y; got 'qr'")):
        Stiefel(retraction="qr")  # type: ignore[arg-type]


def test_a_nearly_singular_matrix_has_a_nearest_one_in_float32() -> None:
    """s_n / s_1 of a large random matrix may be below n eps; a matrix of deficient rank still has none."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64)).Q for _ in range(2))
    s = torch.linspace(1, 0.1, 200, dtype=torch.float64)
    s[-1] = 5e-6
    y = Orthogonal().nearest(((u * s) @ v).float())
    torch.testing.assert_close(y, (u @ v).float(), rtol=0, atol=2e-2)
    assert Orthogonal().residual(y) < 1e-5
    s[-1] = 0
    with pytest.raises(ValueError, match="1 of 1 matrices"):
        Orthogonal().nearest(((u * s) @ v).float())


REFLECTION = torch.diag(torch.tensor([1.0, 1, -1]))


@double
def test_a_nearest_rotation_is_returned_where_it_is_unique_and_refused_where_it_is_not(dtype: torch.dtype) -> None:
    m, u, v = SpecialOrthogonal(), *SpecialOrthogonal().random(2, 3, 3, dtype=dtype)
    for values in ([2, 1, 0], [2e6, 1e6, 0], [3, 2, -1]):  # of rank 2 a direction is left, which the determinant turns
        if values[-1] == 0 or not dtype.is_complex:  # of complex matrices all directions are turned a little
            close(m.nearest(u @ torch.diag(torch.tensor(values, dtype=dtype)) @ v), u @ v, atol=1e-13)
    assert m.nearest(torch.zeros(2, 1, 1, dtype=dtype)).eq(1).all()  # of 1 x 1 matrices there is one
    for bad in (REFLECTION, 1e3 * REFLECTION, torch.diag(torch.tensor([1.0, 0, 0])), -torch.eye(3)):
        with pytest.raises(ValueError, match="deficient rank, below n - 1, or several nearest"):
            m.nearest(u @ bad.to(dtype) @ v)
        with pytest.raises(ValueError, match="1 of 2 matrices"):
            torch.vmap(m.nearest)(torch.stack([u, u @ bad.to(dtype) @ v]))
