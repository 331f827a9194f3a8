"""Many tiny matrices: products with the batch last in memory equal torch's, whatever the order of memory."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from manifolds import Orthogonal, Stiefel
from manifolds.engine import engine
from manifolds.kernels import tiny
from manifolds.kernels.cayley import cayley_move
from manifolds.kernels.cayley import plain as cayley_plain
from manifolds.kernels.exponential import exp_move
from manifolds.kernels.exponential import plain as exp_plain
from manifolds.kernels.tiny import (
    MANY,
    TILE,
    batch_last,
    in_order_of,
    is_batch_last,
    norms,
    product,
    skew_product,
    skew_squares,
    tiled,
    tiles,
    total_norm,
    transposed,
    untiled,
)

DTYPES = [torch.float64, torch.complex128]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
batches = pytest.mark.parametrize("batch", [(MANY,), (4, MANY // 4), (MANY - 1,)], ids=str)


def some(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@dtypes
@batches
@pytest.mark.parametrize("sides", [(1, 1, 1), (3, 3, 3), (7, 7, 7), (5, 2, 3), (8, 8, 8)], ids=str)
def test_product_and_norms_equal_those_of_torch(
    dtype: torch.dtype, batch: tuple[int, ...], sides: tuple[int, int, int]
) -> None:
    n, k, p = sides
    a, b, c = some(*batch, n, k, dtype=dtype), some(*batch, k, p, dtype=dtype), some(*batch, n, p, dtype=dtype)
    for order in (batch_last, torch.clone):
        u, v, w = order(a), order(b), order(c)
        close(product(u, v), a @ b)
        close(product(u, v, w), c + a @ b)
        close(product(u, v, w, -0.5), c - 0.5 * a @ b)
        close(product(v.mH, u.mH), (a @ b).mH)
        close(norms(u), a.abs().square().sum((-2, -1)).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_large_products_one_by_one_equal_those_of_a_batch(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are made where a batch would leave threads waiting; what is recorded is made as it was."""
    n = tiny.LARGE + 1
    a, b, c = (some(count, n, n, dtype=dtype) for _ in range(3))
    expected = a @ b
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    if count == 3:
        monkeypatch.setattr(torch, "bmm", None)
        monkeypatch.setattr(torch, "baddbmm", None)
    bound = 4 * n**0.5 * torch.finfo(dtype).eps * n**0.5  # of n products each, in any order
    for left in (a, a.mH.contiguous().mH):
        for y, by, plus in ((product(left, b), 1.0, 0.0), (product(left, b, c, -0.5), -0.5, c)):
            assert (y - (by * expected + plus)).abs().max() <= bound
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for left, right in ((a.clone().requires_grad_(), b), (a, b.clone().requires_grad_())):
        of = left if left.requires_grad else right
        (grad,) = torch.autograd.grad(product(left, right).real.sum(), of)
        slope = b.sum(-1).conj()[:, None] if of is left else a.sum(-2).conj()[..., None]
        assert (grad - slope).abs().max() <= bound
    graph = make_fx(lambda u, v: product(u, v), tracing_mode="symbolic")(a.repeat(2, 1, 1), b.repeat(2, 1, 1))
    more, others = (some(5, n, n, dtype=dtype) for _ in range(2))
    assert (graph(more, others) - more @ others).abs().max() <= bound


floats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@floats
@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 1, 4), (700, 3, 3), (300, 9, 2), (40, 64, 64), (0, 3, 4)], ids=str)
def test_a_transposed_batch_is_contiguous_and_equal(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    a = some(*shape, dtype=dtype)
    for order in (a, a.mT.contiguous().mT, a.expand(2, *shape)[1]):
        t = transposed(order)
        assert torch.equal(t, a.mT)
        assert t.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "across"),
    [((700, 8, 8), False), ((600, 12, 12), False), ((1, 1024, 1024), False), ((1, 255, 255), True), ((9, 8, 8), True)],
    ids=str,
)
def test_the_skew_part_of_a_product(shape: tuple[int, ...], across: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is equal, is taken where it is meant to be, and is not in the way of derivatives and vmap."""
    calls: list[Tensor] = []
    monkeypatch.setattr(tiny, "transposed", lambda a: calls.append(a) or transposed(a))
    x, g = some(*shape, dtype=torch.float32), some(*shape, dtype=torch.float32)
    kept, a = (x.clone(), g.clone()), x.mT @ g
    expected = a - a.mT
    near = {"rtol": 0, "atol": 1e-6 * shape[-1]}
    with torch.no_grad():
        torch.testing.assert_close(skew_product(x, g, 1.0), expected, **near)
        assert len(calls) == (0 if across else 1)
        assert skew_product(x, g, 1.0).is_contiguous()
        torch.testing.assert_close(skew_product(x, g, -0.25), -0.25 * expected, **near)
        assert torch.equal(x, kept[0])
        assert torch.equal(g, kept[1])
        many = torch.vmap(lambda g: skew_product(x, g, 1.0))(torch.stack([g, -g]))
        torch.testing.assert_close(many, torch.stack([expected, -expected]), **near)
    (slope,) = torch.autograd.grad(skew_product(x, g.requires_grad_(), 1.0), g, expected)
    torch.testing.assert_close(slope, 2 * x @ expected, rtol=1e-4, atol=1e-4 * shape[-1])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # of the backend
@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", "eager"])
@pytest.mark.parametrize("shape", [(600, 3, 3), (700, 9, 9), (3, tiny.LARGE, tiny.LARGE)], ids=str)
def test_the_skew_part_of_a_product_in_a_graph(shape: tuple[int, ...], backend: str) -> None:
    """Whatever order of memory the operators in a graph give their results."""
    x, g = some(*shape, dtype=torch.float32), some(*shape, dtype=torch.float32).requires_grad_()
    by_graph = torch.compile(skew_product, backend=backend, fullgraph=True)
    near = {"rtol": 0, "atol": 1e-5 if shape[-1] < tiny.LARGE else 1e-3}
    expected, got = skew_product(x, g, 0.5), by_graph(x, g, 0.5)
    torch.testing.assert_close(got, expected, **near)
    slope = some(*shape, dtype=torch.float32)
    for a, b in zip(torch.autograd.grad(got, g, slope), torch.autograd.grad(expected, g, slope), strict=True):
        torch.testing.assert_close(a, b, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_a_series_is_cut_below_rounding(dtype: torch.dtype) -> None:
    """In one plane, and for one phase, the bound of the largest singular value that decides where to cut is sharp."""
    x, limit = torch.eye(5, dtype=dtype)[None], 3 * torch.finfo(dtype).eps
    for norm in (0.8**k for k in range(60)):
        turn, angle = torch.zeros_like(x), 2 * math.atan(norm / math.sqrt(8))
        turn[0, 1, 0], turn[0, 0, 1] = norm / math.sqrt(2), -norm / math.sqrt(2)
        y = engine(Orthogonal()).advance(x, turn, 1.0)[0]
        assert abs(y[0, 0].item() - math.cos(angle)) <= limit
        assert abs(y[1, 0].item() - math.sin(angle)) <= limit
        if dtype.is_complex:
            phase = torch.zeros_like(x)
            phase[0, 0, 0] = 1j * norm
            y = engine(Orthogonal()).advance(x, phase, 1.0)[0]
            assert abs(y[0, 0].item() - cmath.exp(2j * math.atan(norm / 2))) <= limit


def test_the_order_of_memory_is_that_of_another_batch_or_contiguous() -> None:
    for like in (some(6, 4, 4), some(4, 4, 6).permute(2, 0, 1), some(4, 4, MANY).permute(2, 0, 1)):
        for a in (some(*like.shape), some(*like.shape).mT):
            got = in_order_of(a, like)
            assert torch.equal(got, a)
            assert got.is_contiguous() or (is_batch_last(like) and is_batch_last(got))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap, in torch's words
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of forward mode
@pytest.mark.parametrize("count", [100, MANY])
def test_steps_of_tiny_matrices_go_where_something_is_recorded_and_in_vmap(count: int) -> None:
    """They promise no derivatives, but nothing that a manifold made of this one does may be an error for it."""
    manifold = Orthogonal()
    x, g = manifold.random(count, 3, 3, dtype=torch.float64), some(count, 3, 3)
    c = engine(manifold).lift(x, g).requires_grad_()
    y = engine(manifold).advance(x, c, 0.1)
    close(y.detach(), engine(manifold).move(x, 0.1 * c.detach()))
    mixed, _ = engine(manifold).mix(x, torch.zeros_like(x), g.requires_grad_(), 0.9, 0.1)
    close(mixed.detach(), 0.1 * c.detach())
    many = torch.stack([c.detach(), -c.detach()])
    expected = torch.stack([engine(manifold).move(x, one) for one in many])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            close(torch.vmap(lambda c: engine(manifold).advance(x, c, 1.0))(many), expected)
    with torch.no_grad(), forward_ad.dual_level():
        assert engine(manifold).advance(x, forward_ad.make_dual(c.detach(), g.detach()), 0.1).shape == x.shape
    one = engine(manifold).advance(x[:1], c.detach(), 0.1)
    close(one, engine(manifold).move(x[:1].expand_as(x), 0.1 * c.detach()))


@floats
@pytest.mark.parametrize("n", [2, 3, 7])
def test_tiles_hold_the_same_matrices(n: int, dtype: torch.dtype) -> None:
    count, tight = 3, {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps}
    a, b, c = (some(count * MANY, n, n, dtype=dtype) + k for k in range(3))
    u, v, w = (tiled(x, count) for x in (a, b, c))
    assert u.shape == (count, MANY, n, n)
    assert is_batch_last(u)
    assert torch.equal(u.reshape(a.shape), a)
    assert torch.equal(untiled(u, a.shape), a)
    assert untiled(u, a.shape).is_contiguous()
    torch.testing.assert_close(untiled(product(u, v), a.shape), a @ b, **tight)
    torch.testing.assert_close(untiled(product(u.mH, v, w, -0.5), a.shape), c - 0.5 * a.mH @ b, **tight)
    torch.testing.assert_close(norms(u).flatten(), norms(a), **tight)
    assert total_norm(u) == pytest.approx(float(torch.linalg.vector_norm(a.double())), rel=1e-6)
    square = norms(a - a.mH).square()
    torch.testing.assert_close(skew_squares(u - u.mH).flatten(), square, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(skew_squares(u - u.mH, 0.125).flatten(), square / 8, rtol=1e-5, atol=1e-6)


def test_there_are_as_many_tiles_as_threads_or_a_few_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(count: int, threads: int) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return tiles(count)

    assert [of(20_000, k) for k in (1, 2, 3, 16, 20)] == [1, 2, 4, 16, 1]
    assert of(21 * TILE + 21, 2) == 3
    assert of(1031 * 1033, 2) == 1  # 1031 tiles would fit
    assert of(20_011, 2) == 1  # a prime number
    assert of(2 * TILE - 2, 2) == 1


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap, in torch's words
@pytest.mark.parametrize("count", [3, MANY])
def test_what_a_manifold_computes_of_tiny_matrices_has_derivatives(count: int) -> None:
    manifold, g = Stiefel(), some(count, 3, 3).requires_grad_()
    x = manifold.random(count, 3, 3, dtype=torch.float64)

    def scalar(g: Tensor) -> Tensor:
        return (engine(manifold).lift(x, g).sin() + engine(manifold).polish(x + 1e-3 * g)).square().sum()

    (slope,) = torch.autograd.grad(scalar(g), g)
    close(torch.func.grad(scalar)(g.detach()), slope)
    v = some(count, 3, 3)
    numeric = (scalar(g + 1e-6 * v) - scalar(g - 1e-6 * v)) / 2e-6
    torch.testing.assert_close((slope * v).sum(), numeric, rtol=1e-6, atol=1e-6)
    many = torch.stack([g.detach(), v])
    close(
        torch.vmap(engine(manifold).lift, (None, 0))(x, many),
        torch.stack([engine(manifold).lift(x, one) for one in many]),
    )


@pytest.mark.parametrize("count", [3, MANY])
def test_one_point_meets_many_gradients_and_many_points_one(count: int) -> None:
    x, g = Stiefel().random(2, count, 3, 3, dtype=torch.float64), some(2, count, 3, 3)
    lift = engine(Stiefel()).lift
    close(lift(x[0], g), torch.stack([lift(x[0], one) for one in g]))
    close(lift(x, g[0]), torch.stack([lift(one, g[0]) for one in x]))


@batches
def test_only_many_tiny_square_matrices_are_put_batch_last(batch: tuple[int, ...]) -> None:
    many = batch != (MANY - 1,)
    a = some(*batch, 5, 5)
    assert is_batch_last(batch_last(a)) == many
    assert torch.equal(batch_last(a), a)
    last = batch_last(a)
    assert batch_last(last) is last
    for other in (some(*batch, 8, 8), some(*batch, 3, 5), a.to("meta")):
        assert batch_last(other) is other
        assert not is_batch_last(other)


@dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.3, 5.0])
@pytest.mark.parametrize(("move", "plain"), [(cayley_move, cayley_plain), (exp_move, exp_plain)], ids=["cayley", "exp"])
def test_moves_and_their_derivatives_equal_their_definitions(move, plain, dtype, n, size) -> None:
    """In either order of memory, which the results keep."""
    x, g = torch.linalg.qr(some(2, MANY, n, n, dtype=dtype)).Q, some(2, MANY, n, n, dtype=dtype)
    a = some(2, MANY, n, n, dtype=dtype)
    a = size * (a - a.mH) / 2 / n

    def pulled(move, x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        x, a = x.detach().requires_grad_(), a.detach().requires_grad_()
        y = move(x, a)
        gx, ga = torch.autograd.grad(y, (x, a), g)
        return y.detach(), gx, (ga - ga.mH) / 2

    expected = pulled(plain, x, a)
    for u, b in ((x, a), (batch_last(x), batch_last(a)), (batch_last(x), a), (x, batch_last(a))):
        got = pulled(move, u, b)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert got[0].is_contiguous() if u is x else is_batch_last(got[0])


@dtypes
@pytest.mark.parametrize("manifold", [Orthogonal(), Stiefel(), Stiefel(metric="canonical")], ids=repr)
@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_manifold_does_not_care_for_the_order_of_memory(manifold, n: int, dtype: torch.dtype) -> None:
    """Many at once, batch first or last, equal the same matrices in small batches."""
    x = torch.linalg.qr(some(MANY, n, n, dtype=dtype)).Q
    g = some(MANY, n, n, dtype=dtype)
    few = zip(x.split(100), g.split(100), strict=True)
    expected = []
    for y, h in few:
        c = engine(manifold).lift(y, h)
        expected.append(
            (
                c,
                engine(manifold).coordinate_inner(y, c, c),
                engine(manifold).move(y, -0.1 * c),
                engine(manifold).polish(1.001 * y),
            )
        )
    for order in (torch.clone, batch_last):
        y, h = order(x), order(g)
        c = engine(manifold).lift(y, h)
        got = (
            c,
            engine(manifold).coordinate_inner(y, c, c),
            engine(manifold).move(y, -0.1 * c),
            engine(manifold).polish(1.001 * y),
        )
        for one, parts in zip(got, zip(*expected, strict=True), strict=True):
            close(one, torch.cat(parts))
        for one in (got[0], got[2], got[3]):
            assert is_batch_last(one) if order is batch_last else one.is_contiguous()
