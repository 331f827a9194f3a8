"""What accelerators run in place of factorizations: as exact, and nothing else decomposes or reads a value there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manifolds import Manifold, Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.engine import engine
from manifolds.kernels import cayley, linalg, resolvent
from manifolds.kernels.halves import REACH, factors_by_halves, resolvent_by_halves, solve_by_halves
from manifolds.kernels.iterations import inverse_sqrt_by_products, lyapunov_by_products
from manifolds.kernels.linalg import inverse_sqrt, lyapunov, sym

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def problem(dtype: torch.dtype, p: int, condition: float) -> tuple[Tensor, Tensor]:
    """Positive definite matrices of this condition, and Hermitian ones; sizes of their own."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float64)
    q = torch.linalg.qr(torch.randn(3, p, p, dtype=wide, generator=generator)).Q
    values = torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)[:, None] * condition ** torch.linspace(0, 1, p)
    c = torch.randn(3, p, p, dtype=wide, generator=generator)
    return sym((q * values.unsqueeze(-2)) @ q.mH).to(dtype), sym(c).to(dtype)


def off(a: Tensor, b: Tensor) -> float:
    """The largest error of a matrix, relative to its size, in roundings."""
    wide = torch.promote_types(a.dtype, torch.float64)
    error = (a.to(wide) - b).abs().amax((-2, -1)) / b.abs().amax((-2, -1))
    return float(error.max()) / torch.finfo(a.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [1, 2, 5, 40])
@pytest.mark.parametrize("condition", [1.0, 1.01, 10.0, 1e4])
def test_inverse_sqrt_by_products(dtype: torch.dtype, p: int, condition: float) -> None:
    """Within a few roundings times the condition, which S itself is only known to."""
    s, _ = problem(dtype, p, condition)
    values, q = torch.linalg.eigh(s.to(torch.promote_types(dtype, torch.float64)))
    assert off(inverse_sqrt_by_products(s), (q * values.rsqrt().unsqueeze(-2)) @ q.mH) <= 20 + condition


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [1, 2, 5, 40])
@pytest.mark.parametrize("condition", [1.0, 1.01, 10.0, 1e2])
def test_lyapunov_by_products(dtype: torch.dtype, p: int, condition: float) -> None:
    """For Y = S^(1/2) with S as above."""
    y, c = problem(dtype, p, condition)
    wide = torch.promote_types(dtype, torch.float64)
    values, q = torch.linalg.eigh(y.to(wide))
    expected = q @ ((q.mH @ c.to(wide) @ q) / (values.unsqueeze(-1) + values.unsqueeze(-2))) @ q.mH
    assert off(lyapunov_by_products(y, c), expected) <= 40 + condition


def skew_of_length(dtype: torch.dtype, n: int, longest: float, even: bool) -> Tensor:
    """Skew, with largest singular value `longest`; even: of the size of the others, else all but two are small."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float64)
    g, uv = (torch.randn(n, k, dtype=wide, generator=generator) for k in (n, 2))
    a = g if even else uv[:, :1] @ uv[:, 1:].mH + 1e-3 * g
    a = a - a.mH
    return (a * (longest / torch.linalg.matrix_norm(a, 2)))[None]


@pytest.mark.parametrize("by_products", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "even", "count"), [(5, True, 1), (5, True, 2), (16, False, 2), (40, True, 1), (40, False, 1)]
)
@pytest.mark.parametrize("longest", [0.0, 1e-4, 0.3, 3.0, 100.0, 1e4, 1e5, 1e7])
def test_a_trivialized_square_is_right_at_any_length_or_nan(
    dtype: torch.dtype, n: int, even: bool, count: int, longest: float, by_products: bool, monkeypatch: Any
) -> None:
    """A jump of the coordinates, which nothing looks at, gives the weight and the gradient of the definition, to
    rounding times the condition sqrt(1 + longest^2 / 4) of I - A/2, and a point of the manifold; or NaN."""
    wide, eps = torch.promote_types(dtype, torch.float64), torch.finfo(dtype).eps
    x = Stiefel().random(count, n, n, dtype=wide, generator=torch.Generator().manual_seed(1))
    exact = skew_of_length(dtype, n, longest, even).to(dtype).repeat(count, 1, 1)
    g = torch.linalg.qr(x + exact).Q  # of norm 1, and of no relation to them
    p = torch.linalg.inv(torch.eye(n, dtype=wide) - exact.to(wide) / 2)
    for module in (linalg, cayley, resolvent):
        monkeypatch.setattr(module, "on_accelerator", lambda a: True)
    monkeypatch.setattr(resolvent, "is_for_products", lambda a: by_products)
    x, a = x.to(dtype), exact.requires_grad_()
    y = cayley.cayley_move(x, a)
    (grad,) = torch.autograd.grad(y, a, g.to(dtype))
    tiny = n <= 16 and count > 1 and not by_products
    reach = 4 * eps**-0.5 if tiny else eps ** (-1 / 3)  # the inverse by Cholesky is off by longest^2 eps / 4
    if y.isnan().any() and longest > reach:
        assert bool(y.isnan().all() and grad.isnan().all())
        return
    condition = (1 + longest**2 / 4) ** 0.5
    assert bool(Stiefel().contains(y.detach()).all())
    assert (y - (2 * x.to(wide) @ p - x)).abs().max() <= (10 + condition) * eps
    expected = p.mH @ x.to(wide).mH @ g @ p.mH
    assert (grad - expected).norm() <= n**0.5 * (10 + condition) * eps * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [5, 16])
def test_many_tiny_inverses_are_made_as_far_as_one_polish_reaches(dtype: torch.dtype, n: int) -> None:
    """A norm of 8 eps^-1/2: an error of 2 eps^1/2, whose square is rounding."""
    a = skew_of_length(dtype, n, 1.0, True).repeat(2, 1, 1)
    a = a / torch.linalg.vector_norm(a[0]) * torch.finfo(dtype).eps ** -0.5
    assert bool(resolvent.resolvent_of_any((7.9 * a).to(dtype)).isfinite().all())
    assert bool(resolvent.resolvent_of_any((8.1 * a).to(dtype)).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "even"), [(33, True), (33, False), (130, True), (130, False), (256, True)])
@pytest.mark.parametrize("norm", [0.0, 0.1, 0.5, 3.0, REACH])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_inverse_by_halves_is_as_exact_as_one_with_pivots(
    dtype: torch.dtype, n: int, even: bool, norm: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to REACH: of the pivots, which gather some sqrt(n) eps, and nothing for |A|; odd sizes, and any order; halved
    as often as on one thread, and as on several."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    a = skew_of_length(dtype, n, 1.0, even)
    a = (a * (norm / torch.linalg.matrix_norm(a))).to(dtype).repeat(2, 1, 1)
    a[1] *= -0.5
    p = torch.linalg.inv(torch.eye(n, dtype=torch.complex128 if a.is_complex() else torch.float64) - a / 2)
    bound = (4 + n**0.5) * torch.finfo(dtype).eps * (1 + (dtype == p.dtype))  # in double P is off by as much
    for found in (resolvent_by_halves(a), resolvent_by_halves(a.mT.contiguous().mT), resolvent_by_halves(a[0])):
        assert (found - (p if found.dim() == 3 else p[0])).abs().max() <= bound
    x = Stiefel().random(2, n, n, dtype=dtype)
    for of, at, expected in ((x, a, p), (x[0, :2], a, p), (x[:, None].mT, a, p), (x[0], a.mT.contiguous().mT[1], p[1])):
        for adjoint in (False, True):
            found = solve_by_halves(of, factors_by_halves(at), adjoint)
            y = of.to(p.dtype) @ (expected.mH if adjoint else expected)
            assert found.shape == y.shape
            assert found.is_contiguous()
            assert (found - y).abs().max() <= bound


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0.01, 0.25])
def test_short_matrices_are_inverted_by_products_alone(
    threads: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where they are less work; a matrix of large entries or NaN has its pivots, and its NaN alone."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    a = skew_of_length(torch.float32, 256, size, True).float().repeat(2, 1, 1)
    p = torch.linalg.inv(torch.eye(256, dtype=torch.float64) - a[0].double() / 2)
    spoiled = a.clone()
    spoiled[0, 3, 5] = torch.nan
    y = resolvent_by_halves(spoiled)
    assert bool(y[0].isnan().any())
    assert (y[1] - p).abs().max() <= 20 * torch.finfo(torch.float32).eps
    monkeypatch.delattr(torch.linalg, "inv_ex")
    assert (resolvent_by_halves(a) - p).abs().max() <= 20 * torch.finfo(torch.float32).eps
    with pytest.raises(AttributeError, match="inv_ex"):
        resolvent_by_halves(a * (8 / size))


@pytest.mark.parametrize(("threads", "size"), [(1, 2.0), (2, 1.0)])
def test_the_products_of_a_long_plane_are_all_needed(
    threads: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rank 2, so that blocks are as long in every norm, and I + B^8 is above rounding."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    uv = torch.randn(2, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.outer(uv[0], uv[1]) - torch.outer(uv[1], uv[0])
    a = (a * (size / torch.linalg.matrix_norm(a, 2))).float()[None]
    p = torch.linalg.inv(torch.eye(256, dtype=torch.float64) - a[0].double() / 2)
    assert (resolvent_by_halves(a)[0] - p).abs().max() <= 4 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("pretended")
def test_the_way_back_of_a_trivialized_square_factorizes_nothing(monkeypatch: Any) -> None:
    """What the way there has inverted is kept, and gives derivatives without any of these."""
    monkeypatch.setattr(resolvent, "is_for_products", lambda a: False)
    monkeypatch.setattr(cayley, "HALVED", 5)  # of processors: here the inverse is whole
    x, a = Stiefel().random(2, 6, 6), skew_of_length(torch.float32, 6, 1.0, True).float().requires_grad_()
    y = cayley.cayley_move(x.requires_grad_(), a)
    expected = torch.autograd.grad(cayley.plain(x, a).sum(), (x, a))
    for name in ("cholesky_ex", "lu_factor_ex", "inv"):
        monkeypatch.delattr(torch.linalg, name)
    for g, h in zip(torch.autograd.grad(y.sum(), (x, a)), expected, strict=True):
        torch.testing.assert_close(g, h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("bad", [-1.0, 0.0, -1e-3, torch.inf, torch.nan])
def test_what_has_no_inverse_sqrt_shows(dtype: torch.dtype, bad: float) -> None:
    """As NaN, and only in the matrix concerned."""
    s, _ = problem(dtype, 5, 10.0)
    q = torch.linalg.qr(torch.randn(5, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))).Q
    if bad == 0:  # or it would be rounding, and positive as often as not
        q = torch.eye(5, dtype=dtype)
    values = torch.tensor([bad, 1.0, 1.0, 2.0, 3.0])
    s[1] = sym((q * values) @ q.mH) if -2 < bad < 2 else bad
    assert inverse_sqrt_by_products(s).isfinite().all((-2, -1)).tolist() == [True, False, True]


def test_batches_may_be_empty() -> None:
    for shape in ((0, 3, 3), (2, 0, 0)):
        s = torch.empty(shape)
        assert inverse_sqrt_by_products(s).shape == lyapunov_by_products(s, s).shape == shape


@pytest.fixture
def pretended(monkeypatch: Any) -> None:
    """The paths of an accelerator, on CPU."""
    for module in (linalg, cayley, resolvent):
        monkeypatch.setattr(module, "on_accelerator", lambda x: True)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_both_derivatives_by_products(dtype: torch.dtype, size: float) -> None:
    m, c = (size * torch.randn(2, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(k)) / 3 for k in (0, 1))

    def shifted(m: Tensor) -> Tensor:
        return sym(m) + 2 * torch.eye(3, dtype=dtype)

    for kernel, inputs in (
        (lambda m: inverse_sqrt(shifted(m)), (m,)),
        (lambda m, c: lyapunov(shifted(m), sym(c)), (m, c)),
    ):
        inputs = tuple(t.clone().requires_grad_() for t in inputs)
        assert torch.autograd.gradcheck(kernel, inputs)
        assert torch.autograd.gradgradcheck(kernel, inputs, atol=1e-4)
        mapped = torch.func.vmap(torch.func.grad(lambda *i, kernel=kernel: kernel(*i).abs().square().sum()))
        alone = [
            torch.func.grad(lambda *i, kernel=kernel: kernel(*i).abs().square().sum())(*i)
            for i in zip(*inputs, strict=False)
        ]
        torch.testing.assert_close(mapped(*inputs), torch.stack(alone), rtol=0, atol=1e-12)


FORBIDDEN = ("lu", "qr", "svd", "eigh", "cholesky_solve", "solve_ex", "check_errors", "local_scalar_dense")


class Products(TorchDispatchMode):
    """Refuses what decomposes a matrix, but for Cholesky and the inverse of tiny ones, waits for a value, or cannot be
    captured in a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").removeprefix("_").removeprefix("linalg_")
        assert not name.startswith(FORBIDDEN), func
        return func(*args, **(kwargs or {}))


CASES: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel(), (2, 9, 4)),
    (Stiefel("canonical"), (2, 4, 9)),
    (Stiefel(), (2, 5, 5)),
    (Stiefel(), (2, 3, 3)),
    (Orthogonal(), (2, 5, 5)),
    (SpecialOrthogonal(), (2, 5, 5)),
]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(("manifold", "shape"), CASES, ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.7])
def test_steps_and_trivializations_are_products(
    manifold: Manifold, shape: tuple[int, ...], size: float, monkeypatch: Any
) -> None:
    """A step and a weight with its gradient, as an accelerator would run them, are those of the CPU."""
    x, g = manifold.random(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)

    def run() -> list[Tensor]:
        mixed, square = engine(manifold).mix(x, engine(manifold).coordinates(x, g.flip(-1)), g, 0.9, 0.1)
        free = (size * g).requires_grad_()
        weight = engine(manifold).move(x, engine(manifold).coordinates(x, free))
        (grad,) = torch.autograd.grad((weight * g.flip(-2)).sum(), free)
        return [
            mixed,
            square,
            engine(manifold).polish(engine(manifold).advance(x, mixed, -size)),
            weight.detach(),
            grad,
        ]

    with Products():
        found = run()
    monkeypatch.undo()
    for one, other in zip(found, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert bool(manifold.contains(found[2]).all())


def test_a_lyapunov_equation_out_of_reach_is_nan_and_no_other_of_the_batch() -> None:
    """Condition 1e6 in float32: a solution half wrong would look like any other."""
    y = torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 10, 1e3, 1e6]))])
    z = lyapunov_by_products(y, torch.ones(2, 4, 4))
    assert torch.allclose(z[0], torch.full((4, 4), 0.5))
    assert bool(z[1].isnan().all())
