"""constrain and unconstrain: names, layouts, initial values, ties, and the way back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from constraints import BlockSpec, Riemannian, Trivialization, constrain, report, unconstrain
from constraints.method import Method
from constraints.records import manifold_of
from manifolds import Euclidean, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Sphere, Stiefel

both = pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)


def error(q: Tensor) -> float:
    """max |Q^H Q - I|, or max |Q Q^H - I| for n < p, over a batch."""
    q = q.detach()
    gram = q.mH @ q if q.shape[-2] >= q.shape[-1] else q @ q.mH
    return float((gram - torch.eye(gram.shape[-1])).abs().max())


def polar(a: Tensor) -> Tensor:
    """The polar factor, matrix by matrix, from the singular value decomposition."""
    w, _, vh = torch.linalg.svd(a.detach().double(), full_matrices=False)
    return w @ vh


# Names ----------------------------------------------------------------------------------------------------------


@both
def test_a_glob_constrains_all_that_it_matches_and_nothing_else(method: Method) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    free = copy.deepcopy(model)
    assert constrain(model, "layers.*.self_attn.in_proj_weight", Stiefel**3, method) is model
    assert [row.name for row in report(model)] == [f"layers.{i}.self_attn.in_proj_weight" for i in range(3)]
    for one, other in zip(model.layers, free.layers, strict=True):
        assert max(map(error, one.self_attn.in_proj_weight.chunk(3))) < 1e-5
        assert torch.equal(one.linear1.weight, other.linear1.weight)
        assert torch.equal(one.self_attn.out_proj.weight, other.self_attn.out_proj.weight)


@both
def test_a_glob_leaves_alone_what_is_no_parameter(method: Method) -> None:
    """Buffers, missing biases and the insides of other parametrizations."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4))
    constrain(model, "0.*", Stiefel, method)
    constrain(model, "[12].bias", Euclidean, method)
    assert [row.name for row in report(model)] == ["0.weight", "1.bias", "2.bias"]


@both
def test_a_glob_that_matches_too_much_is_named(method: Method) -> None:
    """The shape of a bias is no mistake, the glob is; nothing is constrained."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"bias of Linear.*'\*' matches 4 tensors, and 0\.bias among them.*'\*\.weight'"
    ):
        constrain(model, "*", Stiefel, method)
    with pytest.raises(ValueError, match=r"'\?\.\*' matches 4 tensors"):
        constrain(model, "?.*", Stiefel**2, method)
    with pytest.raises(ValueError, match=r"bias of Linear") as caught:
        constrain(model, "0.bias", Stiefel, method)
    assert "matches" not in str(caught.value)
    assert len(report(model)) == 0
    constrain(model, "*.weight", Stiefel, method)


@both
def test_a_random_weight_of_any_size_has_a_nearest_point(method: Method) -> None:
    """Large random matrices are nearly singular, and some so to the digits of float32."""
    torch.manual_seed(0)
    u, v = ((Stiefel**2).random(128, 64, dtype=torch.float64).unflatten(0, (2, 64)) for _ in range(2))
    values = torch.cat([torch.tensor([1e-7, 3e-7], dtype=torch.float64), torch.linspace(0.1, 1, 62)])
    model = nn.Linear(64, 128)
    with torch.no_grad():
        model.weight.copy_((u * values @ v.mT).flatten(0, 1))
    weight = model.weight.detach().clone()
    constrain(model, "weight", Stiefel**2, method)
    for block, start in zip(model.weight.chunk(2), weight.chunk(2), strict=True):
        assert error(block) < 1e-5
        torch.testing.assert_close(block.detach().double(), polar(start), rtol=0, atol=1e-5)


# Layouts --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("manifold", "layout", "cut"),
    [
        (Stiefel**2, None, lambda w: w.chunk(2)),
        (Stiefel, BlockSpec(rows=2, axis=1), lambda w: w.chunk(2, 1)),
        (Stiefel, BlockSpec(rows=(1, 2, 5)), lambda w: w.split([1, 2, 5])),
        (Stiefel**2, BlockSpec(rows=(2, 6)), lambda w: w.split([2, 6])),
        (Stiefel, BlockSpec(rows=1), lambda w: (w,)),
        (Stiefel, BlockSpec(rows=2, axis=-2), lambda w: w.chunk(2)),
        (Stiefel, BlockSpec.pattern("(a b) c -> b a c", b=2), lambda w: (w[::2], w[1::2])),
        (ProductManifold((Stiefel**2, Stiefel), BlockSpec(rows=(4, 4))), None, lambda w: w.split([2, 2, 4])),
        (Stiefel(metric="canonical") ** 2, None, lambda w: w.chunk(2)),
    ],
)
def test_each_block_of_a_layout_is_a_point(manifold: Any, layout: Any, cut: Any, method: Method) -> None:
    linear = nn.Linear(6, 8)
    nearest = [polar(block) for block in cut(linear.weight)]
    constrain(linear, "weight", manifold, method, layout=layout)
    for block, expected in zip(cut(linear.weight), nearest, strict=True):
        assert error(block) < 1e-5
        torch.testing.assert_close(block.detach().double(), expected, rtol=0, atol=1e-5)


@both
def test_axes_before_a_point_are_batch_axes(method: Method) -> None:
    """A stack of experts (E, n, p), and one whose experts hold two matrices each."""
    experts = nn.Module()
    experts.one, experts.two = nn.Parameter(torch.randn(3, 5, 4)), nn.Parameter(torch.randn(3, 8, 4))
    constrain(experts, "one", Stiefel, method)
    constrain(experts, "two", Stiefel, method, layout=BlockSpec(rows=2, axis=-2))
    assert error(experts.one) < 1e-5
    assert max(map(error, experts.two.chunk(2, 1))) < 1e-5


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_other_dtypes(dtype: torch.dtype, method: Method) -> None:
    linear = constrain(nn.Linear(4, 6, dtype=dtype), "weight", Stiefel**2, method)
    assert linear.weight.dtype == dtype
    for block in linear.weight.detach().chunk(2):
        gram = block @ block.mH
        assert (gram - torch.eye(3)).abs().max() < 100 * torch.finfo(dtype).eps


# Initial values ---------------------------------------------------------------------------------------------------


@both
def test_a_point_is_kept(method: Method) -> None:
    linear = nn.Linear(6, 6)
    with torch.no_grad():
        linear.weight.copy_(Orthogonal().random(6, 6))
    before = linear.weight.detach().clone()
    constrain(linear, "weight", Orthogonal, method)
    torch.testing.assert_close(linear.weight.detach(), before, rtol=0, atol=1e-6)
    if method == Riemannian():
        assert torch.equal(linear.weight, before)


@both
def test_a_given_tensor_is_taken_and_not_shared(method: Method) -> None:
    value = Stiefel().random(4, 6)
    linear = constrain(nn.Linear(6, 4), "weight", Stiefel, method, init=value)
    torch.testing.assert_close(linear.weight.detach(), value, rtol=0, atol=1e-6)
    kept = linear.weight.detach().clone()
    value.zero_()
    assert torch.equal(linear.weight, kept)


@both
def test_a_rounded_tensor_is_rounded_back(method: Method) -> None:
    value = Stiefel().random(6, 6, dtype=torch.float64)
    rough = value + 1e-4 * torch.randn(6, 6, dtype=torch.float64)
    linear = constrain(nn.Linear(6, 6), "weight", Stiefel, method, init=rough)
    assert error(linear.weight) < 1e-5
    torch.testing.assert_close(linear.weight.detach().double(), polar(rough), rtol=0, atol=1e-6)


@both
def test_a_function_gets_the_present_value(method: Method) -> None:
    linear = nn.Linear(6, 4)
    before = linear.weight.detach().clone()
    constrain(linear, "weight", Stiefel, method, init=lambda w: -polar(w))
    torch.testing.assert_close(linear.weight.detach().double(), -polar(before), rtol=0, atol=1e-6)
    constrain(nn.Linear(6, 4), "weight", Stiefel, method, init=nn.init.orthogonal_)


@both
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (7, 4), (4, 7), (5, 3), (2, 1)])
@pytest.mark.parametrize("init", ["haar", "identity", "torus"])
def test_named_starts_are_points(init: Any, shape: tuple[int, int], method: Method) -> None:
    linear = constrain(nn.Linear(shape[1], shape[0]), "weight", Stiefel, method, init=init)
    # a product of p reflections of length n, each rounded: Higham (2002), theorem 19.4
    assert error(linear.weight) <= (shape[0] * shape[1] + 4) * torch.finfo(torch.float32).eps
    if init == "identity":
        torch.testing.assert_close(linear.weight.detach(), torch.eye(*shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", ["haar", "torus"])
def test_random_starts_follow_the_seed(init: Any) -> None:
    def start(seed: int) -> Tensor:
        torch.manual_seed(seed)
        linear = nn.Linear(6, 6)
        return constrain(linear, "weight", SpecialOrthogonal, init=init).weight.detach()

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_torus_turns_planes_by_uniform_angles() -> None:
    stack = nn.Module()
    stack.w = nn.Parameter(torch.empty(500, 5, 5))
    constrain(stack, "w", SpecialOrthogonal, init="torus")
    w = stack.w.detach()
    angles = torch.cat([torch.atan2(w[:, i + 1, i], w[:, i, i]) for i in (0, 2)])
    assert kstest((angles / math.pi + 1) / 2, "uniform").pvalue > 1e-3
    rotation = torch.linalg.matrix_exp(angles[:500, None, None].double() * torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(w[:, :2, :2].double(), rotation, rtol=0, atol=1e-6)
    assert torch.equal(w[:, 4, 4], torch.ones(500))
    assert w[:, 2:, :2].abs().max() == 0


@pytest.mark.parametrize("init", ["haar", "identity", "torus"])
def test_named_starts_leave_free_blocks_alone(init: Any) -> None:
    gru = nn.GRU(3, 4)
    before = gru.weight_hh_l0.detach().clone()
    constrain(gru, "weight_hh_l0", Stiefel * Euclidean**2, init=init)
    assert torch.equal(gru.weight_hh_l0[4:], before[4:])
    assert error(gru.weight_hh_l0[:4]) <= (4 * 4 + 4) * torch.finfo(torch.float32).eps  # as above


def test_haar_on_vectors_and_each_block_of_a_product_is_its_own() -> None:
    linear = constrain(nn.Linear(4, 8), "weight", Sphere, init="haar")
    torch.testing.assert_close(linear.weight.detach().norm(dim=-1), torch.ones(8))
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", SpecialOrthogonal**3, init="haar")
    a, b, c = gru.weight_hh_l0.detach().chunk(3)
    assert min((a - b).norm(), (b - c).norm(), (a - c).norm()) > 0.1


# The way back -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("manifold", [Stiefel**3, Orthogonal**3, Stiefel * Euclidean**2])
def test_unconstrain_is_the_same_weight_bit_for_bit(manifold: Manifold, method: Method) -> None:
    gru = nn.GRU(5, 8, num_layers=2, bidirectional=True)
    plain_type, plain_keys = type(gru), list(gru.state_dict())
    plain_names = [name for name, _ in gru.named_parameters()]
    parameter = gru.weight_hh_l1
    constrain(gru, "weight_hh*", manifold, method)
    if isinstance(method, Trivialization):
        with torch.no_grad():
            gru.parametrizations.weight_hh_l1.original.normal_()
    weight, x = gru.weight_hh_l1.detach().clone(), torch.randn(3, 2, 5)
    output = gru(x)[0]
    assert unconstrain(gru, "weight_hh*") is gru
    assert all(w is p for w, p in zip(gru._flat_weights, gru.parameters(), strict=True))
    assert torch.equal(gru.weight_hh_l1, weight)
    assert torch.equal(gru(x)[0], output)
    assert gru.weight_hh_l1 is parameter
    assert isinstance(gru.weight_hh_l1, nn.Parameter)
    assert type(gru) is plain_type
    assert list(gru.state_dict()) == plain_keys
    assert [name for name, _ in gru.named_parameters()] == plain_names
    hooks = (gru._forward_pre_hooks, gru._forward_hooks, gru._load_state_dict_pre_hooks)
    assert not any(hooks)
    assert manifold_of(parameter) is None
    torch.optim.Adam(gru.parameters()).step()


@both
def test_unconstrain_one_of_two(method: Method) -> None:
    gru = constrain(nn.GRU(5, 8, num_layers=2), "weight_hh*", Stiefel**3, method)
    unconstrain(gru, "weight_hh_l0")
    assert [row.name for row in report(gru)] == ["weight_hh_l1"]
    gru(torch.randn(3, 2, 5))
    unconstrain(gru, "*")
    assert len(report(gru)) == 0


@pytest.mark.parametrize("first", [Trivialization(), Riemannian()], ids=repr)
@pytest.mark.parametrize("second", [Trivialization(), Riemannian()], ids=repr)
def test_moving_between_engines_keeps_the_weight(first: Method, second: Method) -> None:
    linear = constrain(nn.Linear(6, 4), "weight", Stiefel, first)
    weight = linear.weight.detach().clone()
    unconstrain(linear, "weight")
    constrain(linear, "weight", Stiefel, second)
    torch.testing.assert_close(linear.weight.detach(), weight, rtol=0, atol=1e-6)


@both
def test_frozen_stays_frozen(method: Method) -> None:
    linear = nn.Linear(4, 4).requires_grad_(False)
    constrain(linear, "weight", Stiefel, method)
    assert not any(p.requires_grad for p in linear.parameters())
    assert not linear.weight.requires_grad
    linear.requires_grad_(True)
    assert linear.weight.requires_grad
    unconstrain(linear.requires_grad_(False), "weight")
    assert not linear.weight.requires_grad


# Ties -------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4, bias=False)
        self.outside = nn.Linear(4, 4, bias=False)
        self.outside.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(torch.tanh(self.inside(x)))


@pytest.mark.parametrize(("method", "name"), [(Trivialization(), "*.weight"), (Riemannian(), "inside.weight")])
def test_a_tie_is_kept(method: Method, name: str) -> None:
    """One Parameter, one constraint, one gradient with both contributions."""
    module = constrain(Tied(), name, Orthogonal, method)
    assert sum(p.requires_grad for p in module.parameters()) == 1
    assert len(report(module)) == 1
    plain = Tied()
    with torch.no_grad():
        plain.inside.weight.copy_(module.inside.weight)
    x = torch.randn(3, 4)
    torch.testing.assert_close(module(x), plain(x))
    weight = Orthogonal().random(4, 4)
    with torch.no_grad():
        if method == Riemannian():
            module.inside.weight.copy_(weight)
        else:
            module.inside.weight = weight
            next(p for p in module.parameters() if p.requires_grad).normal_()
    assert torch.equal(module.inside.weight, module.outside.weight)


def test_a_trivialized_tie_has_both_gradients_and_comes_back_tied() -> None:
    module = constrain(Tied().double(), "*.weight", Orthogonal)
    (original,) = (p for p in module.parameters() if p.requires_grad)

    def loss() -> Tensor:
        return module(torch.ones(3, 4, dtype=torch.float64)).square().sum()

    loss().backward()
    along = torch.randn(4, 4, dtype=torch.float64)
    expected = (original.grad * along).sum()
    with torch.no_grad():
        original.add_(1e-5 * along)
        upper = loss()
        original.sub_(2e-5 * along)
        difference = (upper - loss()) / 2e-5
    torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-8)
    weight = module.inside.weight.detach().clone()
    unconstrain(module, "inside.weight")
    assert module.inside.weight is module.outside.weight is original
    assert torch.equal(module.inside.weight, weight)
