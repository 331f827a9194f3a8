"""The fast Cayley and exponential moves equal their plain definitions, in value and in both derivatives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from manifolds import Stiefel, retractions
from manifolds.kernels import cayley, exponential, linalg

MOVES = [
    pytest.param(cayley.cayley_move, cayley.plain, id="cayley"),
    pytest.param(exponential.exp_move, exponential.plain, id="exp"),
]


# torch's own rules for forward derivatives are compiled by torch.jit.script when they are first used
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def points(shape, dtype, size, seed=0):
    """A point, a skew A of spectral norm about size, and a cotangent."""
    generator = torch.Generator().manual_seed(seed)
    x, a, g = (torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(3))
    a = (a - a.mH) / 2
    return torch.linalg.qr(x)[0], a * (size / max(shape[-1] ** 0.5, 1)), g


def pulled(move, x, a, g):
    """The value, and the gradients of Re<g, value> in x and in the skew part of a."""
    x, a = x.clone().requires_grad_(), a.clone().requires_grad_()
    y = move(x, a)
    value = (y * g.conj()).real.sum() if g.is_complex() else (y * g).sum()
    gx, ga = torch.autograd.grad(value, (x, a))
    return y.detach(), gx, (ga - ga.mH) / 2


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-2, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3, 3), (2, 3, 7, 7), (2, 130, 130), (130, 130)])
def test_a_fast_move_equals_its_definition(move, plain, dtype, size, shape):
    x, a, g = points(shape, dtype, size)
    for fast, slow in zip(pulled(move, x, a, g), pulled(plain, x, a, g), strict=True):
        assert (fast - slow).abs().max() <= 1e-10 * max(1.0, float(slow.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("shape", [(2, 131, 131), (2, 2, 130, 130), (130, 130)])
def test_a_move_by_halves_that_are_not_put_together_equals_its_definition(dtype, size, shape, monkeypatch):
    """The way there, and back to X and to A."""
    monkeypatch.setattr(cayley, "HALVED", 129)
    monkeypatch.setattr(cayley, "resolvent_by_halves", None)
    x, a, g = points(shape, dtype, size)
    fast, slow = pulled(cayley.cayley_move, x, a, g), pulled(cayley.plain, x, a, g)
    for one, other in zip(fast, slow, strict=True):
        assert (one - other).abs().max() <= 1e-10 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [5, 130])
@pytest.mark.parametrize("order", [(1, 0, 2, 3), (1, 0, 3, 2), (0, 1, 3, 2)])
def test_a_fast_move_equals_its_definition_in_any_order_of_memory(move, plain, dtype, n, order):
    """Batches that are no view of one batch axis, as those of blocks that lie side by side."""
    x, a, g = (t.permute(order) for t in points((2, 3, n, n), dtype, 3.0))
    for fast, slow in zip(pulled(move, x, a, g), pulled(plain, x, a, g), strict=True):
        assert (fast - slow).abs().max() <= 1e-10 * max(1.0, float(slow.abs().max()))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("batch", [(), (600,)])
def test_a_move_too_long_to_be_squared_is_not_a_number(n, batch):
    """And never the point where it began."""
    a = torch.zeros(*batch, n, n)
    a[..., 0, 1], a[..., 1, 0] = 1e20, -1e20
    moved = cayley.cayley_move(torch.eye(n).expand(*batch, n, n), a)
    assert bool(moved.isnan().flatten(-2).any(-1).all())


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_both_derivatives(move, plain, dtype, size, n):
    x, a, _ = points((2, n, n), dtype, size)
    inputs = (x.requires_grad_(), a.requires_grad_())

    def skewed(x, b):
        return move(x, (b - b.mH) / 2)

    assert torch.autograd.gradcheck(skewed, inputs)
    assert torch.autograd.gradgradcheck(skewed, inputs)


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("size", [0.01, 3.0])
def test_vmap_equals_a_loop(move, plain, size):
    x, a, _ = points((4, 5, 5), torch.float64, size)
    gradient = torch.func.grad(lambda a, x: move(x, (a - a.mH) / 2).square()[0].sum())
    torch.testing.assert_close(torch.vmap(move)(x, a), torch.stack([move(*one) for one in zip(x, a, strict=True)]))
    torch.testing.assert_close(
        torch.vmap(gradient)(a, x), torch.stack([gradient(*one) for one in zip(a, x, strict=True)])
    )


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("size", [0.01, 3.0])
@pytest.mark.parametrize("shape", [(5, 3, 3), (600, 3, 3), (2, 9, 9)])
def test_many_cotangents_at_once_equal_a_loop(move, plain, size, shape):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x, a, _ = points(shape, torch.float64, size)
    inputs = (x.requires_grad_(), a.requires_grad_())
    y, cotangents = move(*inputs), torch.randn(3, *shape, dtype=torch.float64)
    together = torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    alone = zip(*(torch.autograd.grad(y, inputs, g, retain_graph=True) for g in cotangents), strict=True)
    (gx, ga), (hx, ha) = together, (torch.stack(one) for one in alone)
    torch.testing.assert_close(gx, hx, rtol=0, atol=1e-10)
    torch.testing.assert_close(ga - ga.mH, ha - ha.mH, rtol=0, atol=1e-10)  # of the skew A


@pytest.mark.parametrize("size", [1e-3, 0.5, 8.0])
def test_exp_is_that_of_scipy(size):
    x, a, _ = points((40, 40), torch.float64, size)
    expected = x.numpy() @ scipy.linalg.expm(a.numpy())
    assert np.abs(exponential.exp_move(x, a).numpy() - expected).max() <= 1e-12 * max(1, size)


@pytest.mark.parametrize("size", [0.05, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_exp_and_its_gradient_in_single_precision(dtype, size):
    """To a few roundings of the numbers they are made of: those of the definition, in double precision."""
    x, a, g = points((2, 60, 60), dtype, size)
    wide = torch.promote_types(dtype, torch.float64)
    x = torch.linalg.qr(x.to(wide))[0].to(dtype)
    single = pulled(exponential.exp_move, x, a, g)
    double = pulled(exponential.plain, x.to(wide), a.to(wide), g.to(wide))
    for one, other in zip(single, double, strict=True):
        assert (one - other).abs().max() <= 3e-6 * other.abs().max()
    assert (single[0].mH.to(wide) @ single[0].to(wide) - torch.eye(60)).abs().max() <= 4e-6


@pytest.mark.parametrize("reach", [1 / 16, 0.5, 1.1875, 2.375])
@pytest.mark.parametrize("error", [1e-3, 6e-8, 4e-16])
@pytest.mark.parametrize(("name", "function"), [("exp", np.exp), ("sinhc", lambda z: np.sinc(z.imag / np.pi))])
def test_the_polynomials_are_within_their_error(name, function, reach, error):
    z = 1j * np.linspace(-reach, reach, 1001)
    factors = exponential._polynomial(name, reach, error)
    assert np.abs(np.polyval(factors[::-1], z) - function(z)).max() <= error + 1e-15
    if len(factors) > 1 + (name == "sinhc"):  # that of Taylor has no fewer terms
        taylor = [1 / math.factorial(k) if name == "exp" else (k % 2 == 0) / math.factorial(k + 1) for k in range(41)]
        shorter = taylor[: len(factors) - 1]
        assert np.abs(np.polyval(shorter[::-1], z) - function(z)).max() > error / 2


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_never_gives_a_finite_point(move, plain, bad):
    for n in (3, 5):
        x, a, _ = points((n, n), torch.float64, 1.0)
        a[0, 1], a[1, 0] = bad, -bad
        try:
            y = move(x, a)
        except RuntimeError:  # LU may refuse: as good an answer
            continue
        assert not torch.isfinite(y).all()


@forward_mode
@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("shape", [(2, 2), (2, 3, 3), (4, 4)])
def test_forward_derivatives_are_the_adjoints_of_backward_ones(move, plain, dtype, size, shape):
    """Re<g, dY> = Re<grad_x, dX> + Re<grad_a, dA>, also along one argument alone and as a batch of directions."""
    x, a, g = points(shape, dtype, size)
    dx, da, _ = points(shape, dtype, 1.0, seed=1)
    y, moved = torch.func.jvp(move, (x, a), (dx, da))
    torch.testing.assert_close(y, plain(x, a))
    _, gx, ga = pulled(move, x, a, g)

    def pair(u, v):
        return (u.conj() * v).real.sum()

    torch.testing.assert_close(pair(g, moved), pair(gx, dx) + pair(ga, da), rtol=1e-10, atol=1e-10)
    along_x = torch.func.jvp(lambda x: move(x, a), (x,), (dx,))[1]
    along_a = torch.func.jvp(lambda a: move(x, a), (a,), (da,))[1]
    torch.testing.assert_close(along_x + along_a, moved)
    if not dtype.is_complex:
        jacobian = torch.func.jacfwd(lambda a: move(x, a))(a)
        torch.testing.assert_close(jacobian, torch.func.jacrev(lambda a: move(x, a))(a), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("size", [100.0, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(5, 5), (40, 40), (2, 130, 130)])
def test_long_exponentials_are_orthogonal(dtype, size, shape):
    x, a, _ = points(shape, dtype, size)
    y = exponential.exp_move(x, a)
    assert (y.mH @ y - torch.eye(shape[-1])).abs().max() <= 1e-5


@pytest.mark.parametrize(("move", "plain"), MOVES)
def test_tensors_without_values_move(move, plain):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = move(torch.empty(4, 5, 5), torch.empty(4, 5, 5))
    assert y.shape == (4, 5, 5)


@forward_mode
@pytest.mark.parametrize("retraction", [retractions.cayley, retractions.exp], ids=["cayley", "exp"])
@pytest.mark.parametrize("size", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("n", [3, 4])
def test_second_derivatives_agree_whichever_way_they_are_taken(retraction, size, n):
    """Forward over forward, forward over reverse, reverse over forward, and reverse over reverse."""
    x, a, g = points((n, n), torch.float64, size)

    def value(b):
        return (retraction(x, x @ (b - b.mT)) * g).sum()

    expected = torch.func.jacrev(torch.func.jacrev(value))(a)
    assert expected.abs().max() > 1e-2
    for outer, inner in itertools.product((torch.func.jacfwd, torch.func.jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(value))(a), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.func.hessian(value)(a), expected, rtol=0, atol=1e-9)
    _, along, _ = points((n, n), torch.float64, 1.0, seed=1)

    def velocity(b):
        return torch.func.jvp(value, (b,), (along,))[1]

    found = torch.func.jvp(velocity, (a,), (along,))[1]
    torch.testing.assert_close(found, torch.einsum("ijkl,ij,kl", expected, along, along), rtol=1e-9, atol=1e-9)


@forward_mode
@pytest.mark.parametrize(("move", "plain"), MOVES)
def test_a_tangent_passes_a_graph_that_was_recorded_before(move, plain):
    """The derivative of a gradient along a dual cotangent, to which the gradient is linear."""
    x, a, g = points((2, 130, 130), torch.float64, 3.0)
    a.requires_grad_()
    y = move(x, a)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.zeros_like(g), g)
        (gradient,) = torch.autograd.grad(y, a, dual, retain_graph=True)
        tangent = torch.autograd.forward_ad.unpack_dual(gradient).tangent
    expected = torch.autograd.grad(y, a, g)[0]
    torch.testing.assert_close(tangent - tangent.mH, expected - expected.mH, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("move", "plain"), MOVES)
@pytest.mark.parametrize("size", [0.0, 1e-3, 3.0])
@pytest.mark.parametrize(
    ("n", "batches"),
    [
        *itertools.product([2, 5, 16, 130], [((4,), ()), ((), (4,)), ((2, 1), (3,))]),
        *itertools.product([2, 5], [((1,), (600,)), ((600,), ())]),
    ],
    ids=str,
)
def test_arguments_are_broadcast(move, plain, size, n, batches):
    """One point moved along many vectors, or many along one: gradients have the shapes of what was given."""
    x, _, _ = points((*batches[0], n, n), torch.float64, size)
    _, a, _ = points((*batches[1], n, n), torch.float64, size)
    g = torch.randn(plain(x, a).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    for fast, slow in zip(pulled(move, x, a, g), pulled(plain, x, a, g), strict=True):
        assert fast.shape == slow.shape
        assert (fast - slow).abs().max() <= 1e-10 * max(1.0, float(slow.abs().max()))


@pytest.mark.parametrize(("move", "plain"), MOVES)
def test_vmap_broadcasts_what_is_within(move, plain):
    x, _, _ = points((3, 4, 5, 5), torch.float64, 0.1)
    _, a, _ = points((3, 5, 5), torch.float64, 0.1)
    torch.testing.assert_close(torch.vmap(move)(x, a), plain(x, a[:, None]))
    torch.testing.assert_close(torch.vmap(move)(x[:, 0], x - x.mH), plain(x[:, :1], x - x.mH))


@forward_mode
@pytest.mark.parametrize("sides", [(4, 4), (5, 3)], ids=str)
@pytest.mark.parametrize("accelerated", [False, True])
def test_second_derivatives_of_cayley_agree_on_any_device(sides, accelerated, monkeypatch):
    """The paths of an accelerator, on CPU: there a factorization is one of which torch has wrong nested derivatives."""
    for module in (linalg, cayley):
        monkeypatch.setattr(module, "on_accelerator", lambda x: accelerated)
    manifold = Stiefel(retraction=retractions.cayley)
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(*sides, dtype=torch.float64, generator=generator)
    v, g = (torch.randn(*sides, dtype=torch.float64, generator=generator) for _ in range(2))

    def value(v):
        return (manifold.retract(x, manifold.project(x, v)) * g).sum()

    expected = torch.func.jacrev(torch.func.jacrev(value))(v)
    for outer, inner in itertools.product((torch.func.jacfwd, torch.func.jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(value))(v), expected, rtol=0, atol=1e-9)
