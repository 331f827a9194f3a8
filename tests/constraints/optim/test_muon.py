"""RiemannianMuon: its directions are steepest, its steps their formulas, its points exact."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, param_groups, report, unconstrain
from constraints.optim import RiemannianAdamW, RiemannianMuon, spectral
from manifolds import (
    BlockSpec,
    Euclidean,
    Grassmann,
    Manifold,
    Orthogonal,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)
from manifolds.kernels import dual as kernel
from manifolds.kernels.msign import QUINTICS, msign, msign_by_products, msign_of_skew

REAL, COMPLEX = torch.float64, torch.complex128


def drawn(*shape: int, dtype: torch.dtype = REAL, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum((-2, -1))


def spectral_norm(a: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(a, 2)


def nuclear_norm(a: Tensor) -> Tensor:
    return torch.linalg.svdvals(a).sum(-1)


def stepped(x: Tensor, manifold: Manifold, g: Tensor, lr: float = 0.1, **options: Any) -> Tensor:
    p = nn.Parameter(x.clone())
    p.grad = g.clone()
    options = {"scale": spectral.unit, "weight_decay": 0.0, **options}
    RiemannianMuon([{"params": [p], "manifold": manifold}], lr=lr, **options).step()
    return p.detach()


# msign -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, REAL, torch.complex64, COMPLEX])
@pytest.mark.parametrize("shape", [(6, 6), (2, 9, 4), (4, 9), (5, 1)])
def test_msign_is_the_polar_factor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a = drawn(*shape, dtype=dtype)
    exact = [
        scipy.linalg.polar(each.to(torch.complex128 if dtype.is_complex else REAL).numpy())[0]
        for each in a.view(-1, *shape[-2:])
    ]
    expected = torch.stack([torch.from_numpy(each) for each in exact]).view(shape).to(dtype)
    eps = torch.finfo(dtype).eps  # an error eps |A| of A is amplified by 2 / (s_i + s_j), here below 20 / |A|
    torch.testing.assert_close(msign(a), expected, rtol=0, atol=200 * eps)
    torch.testing.assert_close(msign_by_products(a), expected, rtol=0, atol=max(200 * eps, 1e-8))


def test_msign_leaves_out_what_is_rounding() -> None:
    """A matrix of rank 2 has a factor of rank 2; zero has none."""
    a = drawn(7, 2) @ drawn(2, 5, seed=1)
    b = msign(a)
    torch.testing.assert_close(dot(a, b), nuclear_norm(a))
    assert int((torch.linalg.svdvals(b) > 0.5).sum()) == 2
    assert msign(torch.zeros(3, 3)).abs().max() == 0
    assert msign_by_products(torch.zeros(3, 3)).abs().max() == 0
    a = drawn(6, 4)
    rounding = float(torch.linalg.cond(a)) * torch.finfo(torch.float32).eps  # of A to float32 alone, in its factor
    for scale in (1e-30, 1e30):  # no power overflows
        found = msign_by_products((scale * a).float())
        torch.testing.assert_close(found, msign(a).float(), rtol=0, atol=7 * 6 * rounding)  # 7 steps of 6 sums


def test_quintics_are_as_accurate_as_is_said() -> None:
    """1 to 5e-10 on [1e-3, 1], and each step equioscillates: no odd quintic is nearer to 1 on its interval."""
    small, low, high = torch.logspace(-9, -3, 5000, dtype=REAL), 1e-3, 1.0
    for a, b, c in QUINTICS:
        s = torch.linspace(low, high, 100001, dtype=REAL)
        s, small = a * s + b * s**3 + c * s**5, a * small + b * small**3 + c * small**5
        error = 1 - s
        largest = float(error.abs().max())
        if largest > 1e-6:
            signs = error[error.abs() > 0.999 * largest].sign()
            assert int((signs[1:] != signs[:-1]).sum()) == 3
        low, high = 1 - largest, 1 + largest
    assert largest < 5e-10
    assert bool((small > 0).all())
    assert bool((small < 1 + 5e-10).all())


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("n", [5, 6])
def test_msign_of_skew_is_steepest(n: int, dtype: torch.dtype) -> None:
    """Skew, of norm 1, and as far along A as the nuclear norm allows."""
    a = drawn(3, n, n, dtype=dtype)
    a = (a - a.mH) / 2
    b = msign_of_skew(a)
    assert (b + b.mH).abs().max() < 1e-15
    torch.testing.assert_close(spectral_norm(b), torch.ones(3, dtype=REAL))
    torch.testing.assert_close(dot(a, b), nuclear_norm(a), rtol=1e-13, atol=0)


@pytest.mark.parametrize("n", [4, 5])
def test_on_the_special_unitary_group_it_is_traceless_and_steepest(n: int) -> None:
    """<A, B> = min over t of |A - i t I|_*, for B of trace 0 and norm 1; the minimum by a search."""
    a = drawn(n, n, dtype=COMPLEX)
    a = (a - a.mH) / 2
    b = msign_of_skew(a, traceless=True)
    assert abs(b.diagonal().sum()) < 1e-13
    assert float(spectral_norm(b)) <= 1 + 1e-13

    def bound(t: float) -> float:
        return float(nuclear_norm(a - 1j * t * torch.eye(n, dtype=COMPLEX)))

    dual = min(bound(float(t)) for t in torch.linalg.eigvalsh(-1j * a))  # convex, linear between eigenvalues
    assert abs(float(dot(a, b)) - dual) < 1e-12 * dual


# Directions on tall points ---------------------------------------------------------------------------

TALL = [
    (7, 3, REAL),
    (8, 4, REAL),
    (6, 4, REAL),
    (7, 4, REAL),
    (5, 4, REAL),
    (5, 1, REAL),
    (5, 3, REAL),
    (3, 2, REAL),
    (6, 4, COMPLEX),
    (5, 4, COMPLEX),
]


@pytest.mark.parametrize(("n", "p", "dtype"), TALL)
def test_dual_is_the_steepest_tangent_direction(n: int, p: int, dtype: torch.dtype) -> None:
    """Tangent to 1e-12, of norm 1, and within 1e-6 of a bound that a search of scipy finds by itself."""
    x = Stiefel().random(3, n, p, dtype=dtype, generator=torch.Generator().manual_seed(1))
    m = Stiefel().project(x, drawn(3, n, p, dtype=dtype))
    a = spectral.dual(x, m)
    assert (x.mH @ a + a.mH @ x).abs().max() < 1e-12
    assert (spectral_norm(a) - 1).abs().max() < 1e-12
    value = dot(m, a)
    for k in range(3):
        # for every Hermitian S the maximum is at most |M + X S|_*
        def bound(entries: Any, k: int = k) -> tuple[float, Any]:
            s = torch.from_numpy(entries).view(-1, p, p).requires_grad_()
            full = s[0] if dtype == REAL else torch.complex(s[0], s[1])
            total = nuclear_norm(m[k] + x[k] @ ((full + full.mH) / 2))
            (slope,) = torch.autograd.grad(total, s)
            return float(total.detach()), slope.flatten().numpy()

        start = torch.zeros(p * p * (2 if dtype == COMPLEX else 1), dtype=REAL).numpy()
        found = min(
            scipy.optimize.minimize(bound, start, jac=True, method=how, options={"maxiter": 3000}).fun
            for how in ("BFGS", "L-BFGS-B")
        )
        assert float(value[k]) <= found * (1 + 1e-9)
        if n >= 2 * p or dtype == COMPLEX:  # smooth at its minimum, so that the search comes close
            assert float(value[k]) >= found * (1 - 1e-6)
        else:
            assert float(value[k]) >= found * (1 - 1e-2)


@pytest.mark.parametrize(("n", "p", "dtype"), TALL)
def test_no_direction_is_steeper_than_dual(n: int, p: int, dtype: torch.dtype, monkeypatch: Any) -> None:
    """Its multipliers S prove it: no tangent A of norm 1 exceeds |[Omega + S; N]|_*, S Hermitian."""
    met: list[tuple[Tensor, Tensor, Tensor]] = []
    feasible = kernel._feasible
    monkeypatch.setattr(kernel, "_feasible", lambda at, o, c: met.append((at.y, o, c)) or feasible(at, o, c))
    count = 150 if (n, p) == (5, 3) else 20  # where one of a hundred is hard
    generator = torch.Generator().manual_seed(3)
    x = Stiefel().random(count, n, p, dtype=dtype, generator=generator)
    m = Stiefel().project(x, torch.randn(count, n, p, dtype=dtype, generator=generator))
    value = dot(m, kernel.dual(x, m)) / torch.linalg.matrix_norm(m)
    for y, omega, corner in met:
        assert ((y - omega) - (y - omega).mH).abs().max() < 1e-12
        torch.testing.assert_close(omega, x.mH @ m / torch.linalg.matrix_norm(m)[:, None, None], rtol=0, atol=1e-14)
        rest = m / torch.linalg.matrix_norm(m)[:, None, None] - x @ omega
        torch.testing.assert_close(corner.mH @ corner, rest.mH @ rest, rtol=0, atol=1e-14)
    bound = torch.stack([nuclear_norm(torch.cat([y, corner], -2)) for y, _, corner in met]).amin(0)
    assert bool((value <= bound * (1 + 1e-12)).all())
    assert float((1 - value / bound).max()) < 1e-6


def test_dual_of_nothing_is_nothing() -> None:
    """A zero momentum beside another one; and in float32 the result is float32."""
    x = Stiefel().random(2, 6, 3)
    m = Stiefel().project(x, drawn(2, 6, 3).float())
    m[0] = 0
    a = spectral.dual(x, m)
    assert a.dtype == torch.float32
    assert a[0].abs().max() == 0
    torch.testing.assert_close(spectral_norm(a[1]), torch.tensor(1.0))


# Steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retraction", [retractions.polar, retractions.qr])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (2, 6, 4)])
def test_spel_equals_its_formula(shape: tuple[int, ...], dtype: torch.dtype, retraction: Any) -> None:
    """X+ = msign(X - eta msign(grad)), with the polar factors of scipy, whatever the retraction; rows as columns."""
    manifold = Stiefel(retraction=retraction)
    x, g = manifold.random(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
    y = stepped(x, manifold, g, lr=0.3)
    for x1, g1, y1 in zip(*(t.view(-1, *shape[-2:]) for t in (x, manifold.project(x, g), y)), strict=True):
        a = scipy.linalg.polar(g1.numpy())[0]
        expected = scipy.linalg.polar(x1.numpy() - 0.3 * a)[0]
        torch.testing.assert_close(y1, torch.from_numpy(expected), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("manifold", [Orthogonal(), Stiefel(), Stiefel("canonical"), SpecialOrthogonal()], ids=str)
def test_a_square_step_is_the_closed_form(manifold: Manifold, dtype: torch.dtype) -> None:
    """X Cayley(-eta msign(skew X^H G)), whatever the metric."""
    if isinstance(manifold, SpecialOrthogonal) and dtype == COMPLEX:
        pytest.skip("traceless, see above")
    x, g = manifold.random(6, 6, dtype=dtype), drawn(6, 6, dtype=dtype)
    a = torch.from_numpy(scipy.linalg.polar(((x.mH @ g - g.mH @ x) / 2).numpy())[0])
    one = torch.eye(6, dtype=dtype)
    expected = x @ torch.linalg.solve(one + 0.05 * a, one - 0.05 * a)
    torch.testing.assert_close(stepped(x, manifold, g, lr=0.1), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_a_step_on_grassmann_is_that_of_its_horizontal_gradient(dtype: torch.dtype) -> None:
    """X+ = msign(X - eta msign(G - X X^H G)), whatever the direction: msign of a horizontal vector is horizontal."""
    x, g = Grassmann().random(7, 3, dtype=dtype), drawn(7, 3, dtype=dtype)
    a = scipy.linalg.polar((g - x @ (x.mH @ g)).numpy())[0]
    expected = torch.from_numpy(scipy.linalg.polar(x.numpy() - 0.2 * a)[0])
    for direction in (spectral.spel, spectral.dual):
        y = stepped(x, Grassmann(), g, lr=0.2, direction=direction)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


def test_dual_is_a_value_passed_in() -> None:
    """X+ = msign(X - eta A), of wide points by their transposes."""
    x, g = Stiefel().random(7, 3, dtype=REAL), drawn(7, 3)
    a = spectral.dual(x, Stiefel().project(x, g))
    expected = torch.from_numpy(scipy.linalg.polar((x - 0.2 * a).numpy())[0])
    for transposed in (False, True):
        args = (x.mT.contiguous(), Stiefel(), g.mT.contiguous()) if transposed else (x, Stiefel(), g)
        y = stepped(*args, lr=0.2, direction=spectral.dual)
        torch.testing.assert_close(y.mT if transposed else y, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_euclidean_matrices_move_as_in_torch_optim_muon() -> None:
    """200 steps, with decay, Nesterov or not, and both of torch's scales, by its inexact msign."""
    for nesterov, scale, name in (
        (True, spectral.original, "original"),
        (False, spectral.match_rms_adamw, "match_rms_adamw"),
    ):
        ours, theirs = ([nn.Parameter(drawn(5, 3)), nn.Parameter(drawn(3, 6))] for _ in range(2))
        shared: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
        optimizer = RiemannianMuon(
            [{"params": ours, "manifold": Euclidean(ndim=2)}], **shared, scale=scale, msign=spectral.Quintic()
        )
        reference = torch.optim.Muon(theirs, **shared, adjust_lr_fn=name)
        for k in range(200):
            for p, q in zip(ours, theirs, strict=True):
                p.grad = q.grad = drawn(*p.shape, seed=k)
            optimizer.step()
            reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:weight_decay does nothing")
def test_everything_else_moves_by_adamw() -> None:
    """Free tensors, entries held as Euclidean and rows on a sphere, in the same optimizer at the same rate."""

    def groups() -> list[dict[str, Any]]:
        held = nn.Parameter(Sphere().random(4, 3, dtype=REAL, generator=torch.Generator().manual_seed(5)))
        return [
            {"params": [nn.Parameter(drawn(4, 3))], "manifold": None},
            {"params": [nn.Parameter(drawn(5))], "manifold": Euclidean()},
            {"params": [held], "manifold": Sphere()},
        ]

    runs = []
    for kind in (RiemannianMuon, RiemannianAdamW):
        made = groups()
        optimizer = kind(made, lr=0.01, weight_decay=0.1)
        for k in range(20):
            for group in made:
                for p in group["params"]:
                    p.grad = drawn(*p.shape, seed=k)
            optimizer.step()
        runs.append([p.detach() for group in made for p in group["params"]])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize("held", [None, "trivialized", "a sphere"])
def test_a_module_whose_matrices_are_all_free_is_warned(held: str | None) -> None:
    """Who writes RiemannianMuon(model) in the place of torch's Muon is told what to write, which moves them by Muon."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    if held is not None:
        manifold = {"trivialized": Stiefel(), "a sphere": Sphere()}[held]
        constrain(model, "0.weight", manifold, Trivialization() if held == "trivialized" else Riemannian())
    with pytest.warns(UserWarning, match=r"moves nothing by Muon here.*Euclidean\(ndim=2\), Riemannian\(\)"):
        RiemannianMuon(model)
    constrain(model, "1.weight", Euclidean(ndim=2), Riemannian())
    RiemannianMuon(model)  # and is told no more


def test_packed_matrices_that_are_held_as_entries_are_told_what_fits_the_pack() -> None:
    gru: Any = nn.GRU(4, 4)
    constrain(gru, "weight_hh_l0", Euclidean() ** 3, Riemannian(), layout=BlockSpec(rows=3, axis=-2))
    with pytest.warns(UserWarning, match=r"Euclidean\(ndim=2\)\*\*3, Riemannian\(\)") as caught:
        RiemannianMuon(gru)
    unconstrain(gru, "weight_hh_l0")
    (code,) = re.findall(r"(constrain\(model, .*\)) for those", str(caught[0].message))
    eval(code, {**globals(), "model": gru, "names": "weight_hh_l0"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RiemannianMuon(gru)
    assert report(gru)[0].manifold == ProductManifold((Euclidean(ndim=2),) * 3, BlockSpec(rows=3, axis=-2))


@pytest.mark.parametrize("manifold", [Euclidean(), Euclidean() ** 2], ids=str)
@pytest.mark.parametrize("beside", [None, Stiefel(), Euclidean(ndim=2)], ids=str)
def test_a_matrix_that_is_held_as_entries_is_told(beside: Any, manifold: Any) -> None:
    """It goes by AdamW, as if it were free: nobody holds it for that. Followed to the letter, the warning is gone."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, "0.*", Euclidean, Riemannian())  # a bias with it
    unconstrain(model, "0.weight")
    packed = isinstance(manifold, ProductManifold)
    constrain(model, "0.weight", manifold, Riemannian(), layout=BlockSpec(rows=2, axis=-2) if packed else None)
    if beside is not None:
        constrain(model, "1.weight", beside, Riemannian())
    for params in (model, param_groups(model)):
        with pytest.warns(UserWarning, match=r"by AdamW.* 0\.weight, held on Euclidean") as caught:
            RiemannianMuon(params)
        assert len(caught) == 1
        assert "bias" not in str(caught[0].message)
    unconstrain(model, "0.weight")
    (code,) = re.findall(r"(constrain\(model, .*\)) for those", str(caught[0].message))
    eval(code, {**globals(), "model": model, "names": "0.weight"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RiemannianMuon(model)


def test_what_is_no_matrix_of_one_kind_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    """Biases, rows by a choice of one's own, gates that stay free beside one that does not, and what does not train."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Embedding(5, 4), nn.GRU(4, 4), nn.Linear(4, 4))
    constrain(model, ["0.bias", "3.weight"], Euclidean, Riemannian())
    constrain(model, "1.weight", Euclidean(ndim=1), Riemannian())
    constrain(model, "2.weight_hh_l0", Euclidean**2 * Stiefel, Riemannian())
    model[3].weight.requires_grad_(False)
    RiemannianMuon(model)
    assert not recwarn.list


def test_a_module_without_free_matrices_is_not_warned(recwarn: pytest.WarningsRecorder) -> None:
    RiemannianMuon(constrain(nn.Linear(4, 4), "weight", Sphere, Riemannian()))
    RiemannianMuon(constrain(nn.Linear(4, 4), "weight", Stiefel * Euclidean, Riemannian()))
    RiemannianMuon(nn.BatchNorm1d(4))
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:weight_decay does nothing")
def test_each_block_of_a_packed_weight_is_a_matrix_of_its_own() -> None:
    """Per-head Muon: the blocks of a layout move as the same matrices held apart, and mixed factors by their own."""
    layout = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)
    manifold = Stiefel * Euclidean(ndim=2) * Stiefel * Sphere * Stiefel * Euclidean
    manifold = type(manifold)(manifold.factors, layout)
    x = torch.cat([Stiefel().random(4, 5, dtype=REAL, generator=torch.Generator().manual_seed(k)) for k in range(6)])
    rows = nn.functional.normalize(x, dim=1)
    blocks = [rows[4 * k : 4 * k + 4].clone() if k == 3 else x[4 * k : 4 * k + 4].clone() for k in range(6)]
    whole = nn.Parameter(manifold.pack(blocks))
    apart = [nn.Parameter(b.clone()) for b in blocks]
    together = RiemannianMuon([{"params": [whole], "manifold": manifold}], lr=0.03)
    alone = RiemannianMuon(
        [{"params": [p], "manifold": f} for p, f in zip(apart, manifold.factors, strict=True)], lr=0.03
    )
    for k in range(5):
        g = drawn(*whole.shape, seed=k)
        whole.grad = g
        for p, each in zip(apart, manifold.unpack(g), strict=True):
            p.grad = each.clone()
        together.step()
        alone.step()
    for p, each in zip(apart, manifold.unpack(whole.detach()), strict=True):
        torch.testing.assert_close(each, p.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_points_stay_exact_in_float32(shape: tuple[int, int]) -> None:
    """1000 steps of a size that is large for one: X^H X = I to 1e-6."""
    p = nn.Parameter(Stiefel().random(*shape))
    optimizer = RiemannianMuon([{"params": [p], "manifold": Stiefel()}], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        p.grad = torch.randn(*shape, generator=generator)
        optimizer.step()
    assert float(Stiefel().residual(p.detach())) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("shape", "direction", "steps"),
    [
        ((8, 8), spectral.spel, 10_000),
        ((12, 5), spectral.spel, 10_000),
        ((5, 12), spectral.spel, 10_000),
        ((12, 5), spectral.dual, 1000),
    ],
)
def test_points_stay_exact_in_float32_after_many_steps(shape: tuple[int, ...], direction: Any, steps: int) -> None:
    """X^H X = I to 1e-6 after 10,000 steps, and at every thousandth one."""
    p = nn.Parameter(Stiefel().random(*shape, generator=torch.Generator().manual_seed(1)))
    optimizer = RiemannianMuon([{"params": [p], "manifold": Stiefel()}], lr=0.02, direction=direction)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        p.grad = torch.randn(*shape, generator=generator)
        optimizer.step()
        if step % 1000 == 999:
            assert float(Stiefel().residual(p.detach()).max()) < 1e-6


def test_it_trains_a_whole_model_and_goes_on_bit_for_bit() -> None:
    """Packed gates, free weights and biases by one optimizer; saved, loaded and continued."""

    def build() -> tuple[nn.GRU, RiemannianMuon]:
        torch.manual_seed(0)
        gru = constrain(nn.GRU(5, 8), "weight_hh_l0", Stiefel**3, Riemannian())
        return gru, RiemannianMuon(gru, lr=0.01)

    def run(gru: nn.GRU, optimizer: RiemannianMuon, steps: int, seed: int) -> list[float]:
        losses = []
        for k in range(steps):
            optimizer.zero_grad()
            loss = gru(drawn(7, 3, 5, seed=seed + k).float())[0].square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    gru, optimizer = build()
    losses = run(gru, optimizer, 20, 0)
    assert losses[-1] < losses[0]
    assert all(line.ok for line in report(gru))
    saved, weights = copy.deepcopy((optimizer.state_dict(), gru.state_dict()))
    assert saved["param_groups"][0]["direction"] == "spel"
    other, resumed = build()
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert run(gru, optimizer, 5, 100) == run(other, resumed, 5, 100)
    _, different = build()
    different.param_groups[0]["scale"] = spectral.unit
    with pytest.raises(ValueError, match=r"scale=unit, but the saved state is of a group with match_rms_adamw"):
        different.load_state_dict(saved)


def test_options_out_of_range_are_refused() -> None:
    p = [nn.Parameter(torch.ones(2, 2))]
    for options, error, message in (
        ({"momentum": 1.0}, ValueError, "momentum of RiemannianMuon"),
        ({"lr": -1.0}, ValueError, "lr is at least 0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] of RiemannianMuon"),
        ({"direction": "spel"}, TypeError, "direction of RiemannianMuon is a function"),
        ({"scale": 0.2}, TypeError, "scale of RiemannianMuon"),
        ({"ns_steps": 5}, TypeError, "ns_steps"),
    ):
        with pytest.raises(error, match=message):
            RiemannianMuon(p, **options)  # type: ignore[arg-type]
