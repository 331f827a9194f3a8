"""Problems whose answer linear algebra knows, by every solver, and what a result says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, minimize
from constraints.solve import (
    LBFGS,
    Armijo,
    ConjugateGradient,
    GradientDescent,
    HagerZhang,
    Point,
    Solver,
    StrongWolfe,
    TrustRegion,
    betas,
    hessians,
)
from manifolds import Euclidean, Orthogonal, SpecialOrthogonal, Sphere, Stiefel

F64 = torch.float64
SOLVERS: list[Solver] = [
    TrustRegion(),
    TrustRegion(hessian=hessians.pullback),
    TrustRegion(hessian=hessians.finite_difference),
    LBFGS(),
    LBFGS(memory=3, search=StrongWolfe()),
    LBFGS(search=Armijo()),
    ConjugateGradient(),
    ConjugateGradient(beta=betas.polak_ribiere),
    ConjugateGradient(beta=betas.hestenes_stiefel, search=StrongWolfe(curvature=0.3)),
    ConjugateGradient(beta=betas.fletcher_reeves, restart=0.2),
    ConjugateGradient(search=Armijo()),
    GradientDescent(),
    GradientDescent(search=HagerZhang()),
]
FAST = [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()]


def symmetric(n: int, dtype: torch.dtype = F64) -> Tensor:
    a = torch.randn(n, n, dtype=dtype)
    return (a + a.mH) / 2


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_leading_subspace(solver: Solver) -> None:
    c = symmetric(12)
    found = minimize(lambda x: -(x * (c @ x)).sum(), (12, 3), Stiefel, solver=solver, dtype=F64, max_steps=2000)
    assert found.converged
    assert found.reason.startswith("Converged")
    assert found.gradient_norm <= 1e-6
    # the value is off by the square of the gradient over the gap
    assert abs(found.value + torch.linalg.eigvalsh(c)[-3:].sum().item()) < 1e-9
    assert bool(Stiefel().contains(found.x))


@pytest.mark.parametrize("solver", FAST, ids=repr)
def test_hermitian_ground_state(solver: Solver) -> None:
    c = symmetric(8, torch.complex128)
    found = minimize(lambda x: (x.conj() * (c @ x)).real.sum(), (8,), Sphere, solver=solver, dtype=torch.complex128)
    assert found.converged
    assert abs(found.value - torch.linalg.eigvalsh(c)[0].item()) < 1e-9


@pytest.mark.parametrize("solver", FAST, ids=repr)
def test_procrustes(solver: Solver) -> None:
    a, b = torch.randn(20, 5, dtype=F64), torch.randn(20, 5, dtype=F64)
    w, s, vh = torch.linalg.svd(a.T @ b)
    s[-1] *= torch.linalg.det(w @ vh).sign()
    best = (a.square().sum() + b.square().sum() - 2 * s.sum()).item()

    def f(x: Tensor) -> Tensor:
        return (a @ x - b).square().sum()

    found = minimize(f, (5, 5), SpecialOrthogonal, solver=solver, dtype=F64, starts=4)
    assert found.converged
    assert found.values_of_starts is not None
    assert len(found.values_of_starts) == 4
    assert found.value == found.values_of_starts.min()
    assert abs(found.value - best) < 1e-9


@pytest.mark.parametrize("solver", FAST, ids=repr)
def test_a_dict_moves_as_one_point(solver: Solver) -> None:
    """The leading singular triple: max <u, A v> over two spheres; and a free shift."""
    a = torch.randn(6, 4, dtype=F64)

    def f(p: dict[str, Tensor]) -> Tensor:
        return -(p["u"] @ a @ p["v"]) + (p["c"] - 3).square().sum()

    manifolds = {"u": Sphere, "v": Sphere(), "c": Euclidean}
    starts = {"u": (6,), "v": Sphere().random(4, dtype=F64), "c": torch.zeros(2, dtype=F64)}
    found = minimize(f, starts, manifolds, solver=solver, dtype=F64)
    assert found.converged
    assert found.x.keys() == starts.keys()
    assert abs(found.value + torch.linalg.matrix_norm(a, 2).item()) < 1e-9
    torch.testing.assert_close(found.x["c"], torch.full((2,), 3.0, dtype=F64))


@pytest.mark.parametrize("solver", FAST, ids=repr)
def test_a_product_of_manifolds(solver: Solver) -> None:
    c = symmetric(6)
    weights = torch.tensor([3.0, 2.0, 1.0], dtype=F64)

    def f(x: Tensor) -> Tensor:
        one, two = (Stiefel**2).unpack(x)
        return -((one.T @ c @ one).diagonal() * weights).sum() + ((two.T @ c @ two).diagonal() * weights).sum()

    found = minimize(f, (12, 3), Stiefel**2, solver=solver, dtype=F64, max_steps=2000, starts=3)
    eigenvalues = torch.linalg.eigvalsh(c)
    best = -(eigenvalues[-3:].flip(0) * weights).sum() + (eigenvalues[:3] * weights).sum()
    assert found.converged
    assert abs(found.value - best.item()) < 1e-9


@pytest.mark.parametrize("solver", FAST, ids=repr)
def test_a_model_is_moved(solver: Solver) -> None:
    """Linear regression with an orthogonal weight and a free bias: Procrustes of centered data."""
    a, turn = torch.randn(30, 4, dtype=F64), SpecialOrthogonal().random(4, 4, dtype=F64)
    b = a @ turn.T + 0.1 * torch.randn(30, 4, dtype=F64) + 2
    model = constrain(nn.Linear(4, 4, dtype=F64), "weight", SpecialOrthogonal, Riemannian(), init="identity")
    bias = model.bias
    found = minimize(lambda: (model(a) - b).square().sum(), model, solver=solver)
    centered = (b - b.mean(0)).T @ (a - a.mean(0))
    w, _, vh = torch.linalg.svd(centered)
    assert found.converged
    assert found.x is model
    assert model.bias is bias
    assert bias.grad is None
    torch.testing.assert_close(model.weight.detach(), w @ vh, atol=1e-7, rtol=0)
    torch.testing.assert_close(bias.detach(), (b - a @ (w @ vh).T).mean(0), atol=1e-7, rtol=0)


def test_steps_are_few() -> None:
    """As many as pymanopt 2.2.1 takes to 1e-6 on problems like these: 23 of trust regions and 34 of conjugate gradients
    for such a subspace, 9 and 50 for such a rotation; a tenth more for another draw."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 0.8 ** torch.arange(64, dtype=F64)
    a = torch.randn(100, 40, dtype=F64, generator=generator)
    turn = SpecialOrthogonal().random(40, 40, dtype=F64, generator=generator)
    b = a @ turn + 0.3 * torch.randn(100, 40, dtype=F64, generator=generator)
    small = 0.08 * torch.randn(40, 40, dtype=F64, generator=generator)
    near = turn @ torch.linalg.matrix_exp(small - small.T)
    start = Stiefel().random(64, 5, dtype=F64, generator=generator)
    for solver, most, most_turned in ((TrustRegion(), 25, 9), (LBFGS(), 37, 55), (ConjugateGradient(), 37, 55)):
        found = minimize(lambda x: -(spectrum[:, None] * x * x).sum(), start, Stiefel, solver=solver)
        assert found.converged
        assert found.steps <= most
        found = minimize(lambda x: (a @ x - b).square().sum(), near, SpecialOrthogonal, solver=solver)
        assert found.converged
        assert found.steps <= most_turned


def test_callback_progress_and_history(capsys: pytest.CaptureFixture[str]) -> None:
    c, seen = symmetric(10), []

    def callback(point: Point) -> bool:
        seen.append(point)
        assert bool(Sphere().contains(point.x))
        return point.step == 3

    found = minimize(
        lambda x: x @ c @ x, (10,), Sphere, solver=GradientDescent(), dtype=F64, callback=callback, progress=True
    )
    assert [point.step for point in seen] == [0, 1, 2, 3]
    assert not found.converged
    assert found.reason == f"Stopped by the callback (gradient norm {found.gradient_norm:.1e})."
    assert len(found.history) == 4
    assert found.history.value == [point.value for point in seen]
    assert found.history.step[0] == 0
    assert all(b >= a for a, b in zip(found.history.seconds, found.history.seconds[1:], strict=False))
    written = capsys.readouterr().err
    assert "minimize: step 0" in written
    assert written.endswith("\r")


def test_results_are_drawn() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    c = symmetric(6)
    axes = minimize(lambda x: x @ c @ x, (6,), Sphere, dtype=F64).history.plot(label="trust regions")
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_label() == "trust regions"
    pyplot.close("all")


def test_float32_stops_where_rounding_does() -> None:
    c = symmetric(20).float()
    for solver in FAST:
        found = minimize(lambda x: -(x * (c @ x)).sum(), (20, 3), Stiefel, solver=solver, tol=1e-3)
        assert found.converged
        assert found.x.dtype == torch.float32
        below = minimize(lambda x: -(x * (c @ x)).sum(), (20, 3), Stiefel, solver=solver, tol=1e-12, max_steps=300)
        assert not below.converged
        assert below.gradient_norm < 1e-3
        assert math.isfinite(below.value)


def test_both_components_of_the_orthogonal_group() -> None:
    """Only the component with the determinant of the target has the answer, and no descent leaves that of its start."""
    target = SpecialOrthogonal().random(5, 5, dtype=F64)
    target = torch.cat([-target[:, :1], target[:, 1:]], 1)
    start = SpecialOrthogonal().random(5, 5, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (x - target).square().sum()

    one = minimize(f, start, Orthogonal)
    assert one.converged
    assert one.determinants is not None
    assert one.determinants.tolist() == [1]
    assert one.value > 1
    both = minimize(f, start, Orthogonal, both_components=True)
    assert both.determinants is not None
    assert both.determinants.tolist() == [-1]
    assert repr(one).endswith(", determinants [1])")
    assert both.value < 1e-10
    assert both.values_of_starts is not None
    assert len(both.values_of_starts) == 2


def test_two_factors_have_four_components() -> None:
    targets = torch.stack([torch.eye(3, dtype=F64), torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=F64))])
    found = minimize(
        lambda x: (x.unflatten(0, (2, 3)) - targets).square().sum(), (6, 3), Stiefel**2, dtype=F64, both_components=True
    )
    assert found.value < 1e-10
    assert found.determinants is not None
    assert found.determinants.tolist() == [1, -1]


@pytest.mark.parametrize("shape", [(30, 3), (12, 5), (3, 30)], ids=str)
def test_trust_regions_reach_in_float32_what_the_gradient_can(shape: tuple[int, ...]) -> None:
    """Near an answer that turns freely, x Q for x, neither normal parts nor flat directions take over."""
    n, wide = max(shape), shape[0] < shape[1]

    def f(x: Tensor) -> Tensor:
        x = x.mT if wide else x
        return -(x * (c @ x)).sum()

    for _ in range(5):
        c = torch.randn(2 * n, n)
        c = c.T @ c / (2 * n)
        found = minimize(f, shape, Stiefel, tol=1e-7)
        slope = 2 * float((c @ (found.x.mT if wide else found.x)).norm())
        # each entry of a product is off by some eps of its terms, of which the projection makes no more
        assert min(found.history.norm) < 16 * torch.finfo(torch.float32).eps * slope
