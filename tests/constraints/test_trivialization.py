"""The trivialization engine: what its weight is, when it is computed, and what may be done to its module."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from constraints import BlockSpec, constrain, rebase, report, unconstrain
from constraints.trivialization import Trivialized
from manifolds import (
    Correlation,
    Euclidean,
    FixedRank,
    Hurwitz,
    Manifold,
    Orthogonal,
    PositiveDefinite,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)
from manifolds.engine import engine

X = torch.arange(30.0).reshape(3, 2, 5).sin()


def constrained_gru() -> Any:
    torch.manual_seed(1)
    return constrain(nn.GRU(5, 4, num_layers=2), "weight_hh*", Stiefel**3)


def moved(module: nn.Module) -> Any:
    """The module with coordinates away from zero."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("original"):
                p.copy_(0.3 * torch.randn_like(p))
    return module


def error(q: Tensor) -> float:
    q = q.detach().double()
    return float((q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max())


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a weight is computed."""
    log: list[int] = []
    evaluate = Trivialized.evaluate

    def counted(self: Trivialized, original: Tensor) -> Tensor:
        log.append(id(self))
        return evaluate(self, original)

    monkeypatch.setattr(Trivialized, "evaluate", counted)
    return log


# The weight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifold", [Stiefel(), Stiefel(retraction=retractions.qr), Orthogonal(), SpecialOrthogonal(), Sphere()]
)
def test_the_weight_is_the_retraction_of_its_coordinates(manifold: Manifold) -> None:
    linear: Any = moved(constrain(nn.Linear(4, 4), "weight", manifold))
    base, original = linear.parametrizations.weight[0].base_point, linear.parametrizations.weight.original.detach()
    expected = engine(manifold).move(base, engine(manifold).coordinates(base, original))
    torch.testing.assert_close(linear.weight.detach(), expected, rtol=0, atol=0)
    assert manifold.residual(linear.weight.detach()).max() < 1e-5
    with torch.no_grad():
        linear.parametrizations.weight.original.zero_()
    torch.testing.assert_close(linear.weight.detach(), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_the_gradient_at_the_base_is_finite_and_right(shape: tuple[int, int]) -> None:
    linear: Any = constrain(nn.Linear(shape[1], shape[0]).double(), "weight", Stiefel)
    x = torch.randn(7, shape[1], dtype=torch.float64)
    original = linear.parametrizations.weight.original

    def loss() -> Tensor:
        return linear(x).sin().sum()

    loss().backward()
    along = torch.randn_like(original)
    with torch.no_grad():
        original.copy_(1e-5 * along)
        upper = loss()
        original.copy_(-1e-5 * along)
        difference = (upper - loss()) / 2e-5
    torch.testing.assert_close((original.grad * along).sum(), difference, rtol=1e-6, atol=1e-8)


def test_assignment_moves_the_base() -> None:
    linear: Any = moved(constrain(nn.Linear(4, 4), "weight", Orthogonal))
    original = linear.parametrizations.weight.original
    value = Orthogonal().random(4, 4)
    linear.weight = value
    assert torch.equal(linear.parametrizations.weight[0].base_point, value)
    assert linear.parametrizations.weight.original is original
    assert original.count_nonzero() == 0
    torch.testing.assert_close(linear.weight.detach(), value, rtol=0, atol=1e-6)
    value.zero_()
    assert error(linear.weight) < 1e-5


def test_assignment_to_a_gru_is_seen_by_its_next_pass() -> None:
    gru = constrained_gru()
    gru(X)
    gru.weight_hh_l0 = (Stiefel**3).random(12, 4)
    plain = nn.GRU(5, 4, num_layers=2)
    with torch.no_grad():
        for name in plain.state_dict():
            getattr(plain, name).copy_(getattr(gru, name))
    assert torch.equal(gru(X)[0], plain(X)[0])


@pytest.mark.parametrize("rule", [nn.init.normal_, nn.init.zeros_, nn.init.orthogonal_])
def test_a_change_in_place_is_never_silently_nothing(rule: Any) -> None:
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    rule(linear.weight)
    with pytest.raises(ValueError, match=r"weight of Linear.*changed in place.*module\.weight = value"):
        linear(torch.randn(2, 4))
    linear(torch.randn(2, 4))


@pytest.mark.parametrize("method", ["weight", "bare"])
@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.fill_(0),
        lambda w: w.data.normal_(),
        lambda w: w.data.copy_(2 * torch.eye(4)),
        lambda w: w.data.neg_(),
        lambda w: nn.init.eye_(w.data),
    ],
)
def test_a_write_to_data_is_never_silently_nothing(write: Any, method: str) -> None:
    """`.data` has a version of its own: the values tell."""
    torch.manual_seed(0)
    linear = moved(constrain(nn.Linear(4, 4), "weight", Stiefel, init="haar"))
    for _ in range(2):
        write(linear.weight)
        with pytest.raises(ValueError, match=r"weight of Linear.*changed in place.*module\.weight = value"):
            linear(torch.randn(2, 4)) if method == "weight" else linear.weight
        linear(torch.randn(2, 4))


def test_a_computed_weight_is_not_pruned() -> None:
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    state = copy.deepcopy(linear.state_dict())
    with pytest.raises(ValueError, match=r"weight of Linear\(in.*prune needs a Parameter\. Unconstrain it first"):
        prune.l1_unstructured(linear, "weight", 2)  # type: ignore[no-untyped-call]
    assert all(torch.equal(value, state[name]) for name, value in linear.state_dict().items())
    assert not linear._buffers
    assert linear(torch.ones(4)).shape == (4,)


def test_scratch_work_on_the_weight_is_told_to_take_a_copy() -> None:
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    scratch = linear.weight.detach()
    scratch -= scratch.mean()
    with pytest.raises(ValueError, match=r"changed in place.*take one by \.detach\(\)\.clone\(\)"):
        linear(torch.randn(2, 4))


def test_where_values_cannot_be_looked_at_nothing_is_said_of_them() -> None:
    """As while operations are counted: the write is seen afterwards."""
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    linear.weight.data.zero_()
    with FlopCounterMode(display=False):
        linear(torch.randn(2, 4))
    with pytest.raises(ValueError, match="changed in place"):
        linear(torch.randn(2, 4))
    linear.weight.detach()
    with FlopCounterMode(display=False):
        linear(torch.randn(2, 4))


RESET: dict[str, tuple[Any, str, Any]] = {
    "Linear": (lambda: nn.Linear(4, 6), "weight", Stiefel),
    "Bilinear": (lambda: nn.Bilinear(3, 3, 2), "weight", Stiefel),
    "Conv2d": (lambda: nn.Conv2d(3, 6, 2), "weight", Sphere),
    "Embedding": (lambda: nn.Embedding(6, 4), "weight", Sphere),
    "GRU": (lambda: nn.GRU(5, 4, num_layers=2), "weight_hh_l*", Stiefel**3),
    "LSTM": (lambda: nn.LSTM(5, 4), "weight_hh_l0", Stiefel**4),
    "GRUCell": (lambda: nn.GRUCell(5, 4), "weight_hh", SpecialOrthogonal**3),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", Stiefel**3),
}
LAYOUTS = {"Bilinear": BlockSpec.pattern("o i j -> o i j"), "Conv2d": BlockSpec.pattern("o i h w -> o (i h w)")}


@pytest.mark.parametrize("kind", RESET)
def test_reset_parameters_takes_the_point_nearest_to_what_it_draws(kind: str) -> None:
    """And draws the free parameters as the plain module does, of one seed."""
    make, name, manifold = RESET[kind]
    module = make()
    plain = copy.deepcopy(module)  # attention draws a part of its parameters only
    constrain(module, name, manifold, layout=LAYOUTS.get(kind))
    moved(module)
    reset = "reset_parameters" if hasattr(plain, "reset_parameters") else "_reset_parameters"
    for each in (module, plain):
        torch.manual_seed(1)
        getattr(each, reset)()
    for row in report(module):
        drawn = plain.get_parameter(row.name)
        torch.testing.assert_close(getattr(module, row.name), row.manifold.nearest(drawn), rtol=0, atol=1e-5)
    held = {row.name for row in report(module)}
    for key, p in plain.named_parameters():
        if key not in held:
            assert torch.equal(module.get_parameter(key), p)
    if isinstance(module, nn.GRU):
        module(X)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_coordinates_too_far_out_are_an_error(shape: tuple[int, int]) -> None:
    """Their squares overflow; the weight would be NaN."""
    linear: Any = constrain(nn.Linear(shape[1], shape[0]), "weight", Stiefel)
    with torch.no_grad():
        linear.parametrizations.weight.original.copy_(1e20 * torch.ones(shape).cumsum(0).cumsum(1).sin())
    with pytest.raises(ValueError, match=r"weight of Linear.*no value.*too far from their base"):
        linear(torch.randn(2, shape[1]))
    with pytest.raises(ValueError, match=r"weight of Linear.*no value"):
        rebase(linear)
    linear.weight = torch.eye(*shape)
    linear(torch.randn(2, shape[1]))


@pytest.mark.parametrize("shape", [(4, 4), (6, 4)])
def test_nan_in_the_coordinates_can_be_mended(shape: tuple[int, int]) -> None:
    """The error names the tensor; an assignment or a checkpoint is the way out."""
    linear: Any = constrain(nn.Linear(shape[1], shape[0]), "weight", Stiefel)
    good = {name: value.clone() for name, value in linear.state_dict().items()}
    x = torch.randn(2, shape[1])
    for mend in (lambda: setattr(linear, "weight", torch.eye(*shape)), lambda: linear.load_state_dict(good)):
        with torch.no_grad():
            linear.parametrizations.weight.original[0, 1] = float("nan")
        with pytest.raises(ValueError, match=r"weight of Linear.*NaN"):
            linear(x)
        (row,) = report(linear)
        assert math.isnan(row.residuals[0])
        mend()
        assert linear(x).isfinite().all()


# Registered with torch --------------------------------------------------------------------------------------------


def test_torch_knows_it_as_a_parametrization() -> None:
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)
    assert parametrize.is_parametrized(linear, "weight")
    assert parametrize.type_before_parametrizations(linear) is nn.Linear
    weight = linear.weight.detach().clone()
    with parametrize.cached():
        assert linear.weight is linear.weight
    parametrize.remove_parametrizations(linear, "weight")
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, weight)
    linear(torch.randn(2, 4)).sum().backward()


def test_another_parametrization_may_follow() -> None:
    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

        def right_inverse(self, w: Tensor) -> Tensor:
            return w / 2

    linear: Any = constrain(nn.Linear(4, 4), "weight", Stiefel)
    parametrize.register_parametrization(linear, "weight", Double())
    assert error(linear.weight / 2) < 1e-5
    linear.weight = -2 * torch.eye(4)
    torch.testing.assert_close(linear.weight.detach(), -2 * torch.eye(4))


# Once per forward pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_each_weight_of_an_rnn_is_computed_once_per_pass(kind: Any, train: bool, evaluations: list[int]) -> None:
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind]
    rnn = constrain(kind(5, 4, num_layers=2, bidirectional=True), "weight_hh*", Orthogonal**gates).train(train)
    for _ in range(3):
        evaluations.clear()
        rnn(X)
        assert len(evaluations) == len(set(evaluations)) == 4
    evaluations.clear()
    with torch.no_grad():
        rnn(X)
    assert len(evaluations) == 4
    evaluations.clear()
    with parametrize.cached():
        rnn(X)
        rnn(X)
    assert len(evaluations) == 4


def test_attention_computes_its_weight_once_per_pass(evaluations: list[int]) -> None:
    attention = constrain(nn.MultiheadAttention(4, 2), "in_proj_weight", Stiefel**3)
    x = torch.randn(3, 2, 4)
    evaluations.clear()
    attention(x, x, x)
    assert len(evaluations) == 1


class Reader(nn.Module):
    """Reads its weight as a test says, and may fail half way."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.body = body

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


def test_a_read_without_gradients_does_not_serve_one_with() -> None:
    def body(self: Reader) -> Tensor:
        with torch.no_grad():
            first = self.weight
        assert not first.requires_grad
        return self.weight

    reader: Any = constrain(Reader(body), "weight", Stiefel)
    assert reader().requires_grad


def test_a_failed_pass_leaves_nothing_behind(evaluations: list[int]) -> None:
    def body(self: Reader, fail: bool) -> Tensor:
        y = self.weight @ self.weight
        if fail:
            raise RuntimeError("half way")
        return y

    reader: Any = constrain(Reader(body), "weight", Stiefel)
    with pytest.raises(RuntimeError, match="half way"):
        reader(True)
    moved(reader)
    assert reader.weight is not reader.weight
    torch.testing.assert_close(reader(False), reader.weight @ reader.weight)


def test_a_pass_within_a_pass(evaluations: list[int]) -> None:
    def body(self: Reader, depth: int) -> Tensor:
        before = self.weight
        inner = self(depth - 1) if depth else 0
        return before + self.weight + inner

    reader: Any = moved(constrain(Reader(body), "weight", Stiefel))
    torch.testing.assert_close(reader(2), 6 * reader.weight)


def test_an_assignment_within_a_pass_is_seen() -> None:
    value = Stiefel().random(4, 4)

    def body(self: Reader) -> tuple[Tensor, Tensor]:
        before = self.weight
        self.weight = value
        return before, self.weight

    reader: Any = constrain(Reader(body), "weight", Stiefel)
    before, after = reader()
    torch.testing.assert_close(before, torch.eye(4))
    torch.testing.assert_close(after.detach(), value, rtol=0, atol=1e-6)


def test_threads_do_not_share_a_graph() -> None:
    """Two passes at the same time, each with a backward of its own."""
    started, failures = threading.Barrier(2, timeout=30), []

    def body(self: Reader) -> Tensor:
        first = self.weight
        started.wait()
        return first + self.weight

    reader: Any = moved(constrain(Reader(body), "weight", Stiefel))

    def work() -> None:
        try:
            reader().sum().backward()
        except RuntimeError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_no_graph_is_kept_after_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    evaluate = Trivialized.evaluate

    def watched(self: Trivialized, original: Tensor) -> Tensor:
        weight = evaluate(self, original)
        alive.add(weight)
        return weight

    monkeypatch.setattr(Trivialized, "evaluate", watched)
    gru = constrained_gru()
    alive.clear()
    output = gru(X)[0]
    assert not any(isinstance(w, Tensor) and w.grad_fn for w in gru._flat_weights)
    del output
    gc.collect()
    assert len(alive) == 0


# torch.func, checkpointing, compiling -----------------------------------------------------------------------------


def test_functional_call_and_grad() -> None:
    gru = moved(constrained_gru())
    parameters, buffers = dict(gru.named_parameters()), dict(gru.named_buffers())

    def loss(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(gru, (p, buffers), (X,))[0].square().sum()

    gradients = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    gru(X)[0].square().sum().backward()
    for name, p in parameters.items():
        if p.requires_grad:
            torch.testing.assert_close(gradients[name], p.grad)
        else:
            assert p.grad is None
            assert not gradients[name].any()
    other = moved(copy.deepcopy(gru))
    torch.testing.assert_close(loss(dict(other.named_parameters())), other(X)[0].square().sum())
    torch.testing.assert_close(loss(parameters), gru(X)[0].square().sum())


def test_a_plain_name_in_functional_call_has_no_derivative() -> None:
    linear = constrain(nn.Linear(4, 4), "weight", Stiefel)

    def loss(w: Tensor) -> Tensor:
        return torch.func.functional_call(linear, {"weight": w}, (torch.ones(2, 4),)).sum()

    with pytest.raises(ValueError, match=r"weight of Linear.*torch\.func.*original"):
        torch.func.grad(loss)(torch.eye(4))


def test_vmap_over_an_ensemble() -> None:
    models = [moved(constrain(nn.Sequential(nn.Linear(4, 4)), "0.weight", SpecialOrthogonal)) for _ in range(3)]
    stacked = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    x = torch.randn(2, 4)
    outputs = torch.func.vmap(lambda *state: torch.func.functional_call(models[0], state, (x,)))(*stacked)
    torch.testing.assert_close(outputs, torch.stack([model(x) for model in models]))


def test_second_derivatives() -> None:
    linear: Any = moved(constrain(nn.Linear(3, 3).double(), "weight", Stiefel))
    x = torch.randn(2, 3, dtype=torch.float64)

    def loss(original: Tensor) -> Tensor:
        state = {"parametrizations.weight.original": original}
        return torch.func.functional_call(linear, state, (x,)).pow(4).sum()

    original = linear.parametrizations.weight.original.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, original)
    assert torch.autograd.gradgradcheck(loss, original)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    gru, again = moved(constrained_gru()), None
    again = copy.deepcopy(gru)
    gru(X)[0].square().sum().backward()
    x = X.clone().requires_grad_()
    checkpoint(lambda z: again(z)[0], x, use_reentrant=reentrant).square().sum().backward()
    for p, q in zip(gru.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_checkpoint_within_a_pass() -> None:
    def body(self: Reader, x: Tensor) -> Tensor:
        y = self.weight @ x
        return checkpoint(lambda z: self.weight @ torch.tanh(self.weight @ z), y, use_reentrant=False)

    reader: Any = moved(constrain(Reader(body), "weight", Stiefel))
    x = torch.randn(4, requires_grad=True)
    reader(x).sum().backward()
    w = reader.weight.detach()
    expected = torch.autograd.functional.jacobian(lambda z: (w @ torch.tanh(w @ (w @ z))).sum(), x.detach())
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Stiefel, (4, 4)),
        (Stiefel, (6, 4)),
        (Stiefel, (4, 6)),
        (SpecialOrthogonal, (4, 4)),
        (Sphere, (4, 4)),
        (Stiefel * Euclidean, (8, 4)),
        (Stiefel**2, (6, 4)),
        (Stiefel**3, (1200, 400)),
        (Stiefel, (300, 260)),
        (SpecialOrthogonal, (260, 260)),
        (Sphere, (300, 260)),
        (PositiveDefinite(), (260, 260)),
        (FixedRank(1), (9, 8)),
        (PositiveDefinite("affine-invariant"), (4, 4)),
        (PositiveDefinite("bures-wasserstein"), (4, 4)),
        (Correlation(), (4, 4)),
        (Hurwitz(), (4, 4)),
    ],
    ids=str,
)
def test_a_linear_model_compiles_to_one_graph(manifold: Any, shape: tuple[int, int]) -> None:
    torch._dynamo.reset()
    model = moved(constrain(nn.Sequential(nn.Linear(shape[1], shape[0]), nn.Tanh()), "0.weight", manifold, init="haar"))
    plain, x = copy.deepcopy(model), torch.randn(3, shape[1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
    compiled(x).sum().backward()
    plain(x).sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [64, 8])
def test_autocast_does_not_touch_the_geometry(p: int) -> None:
    """Under autocast the map would be computed in bfloat16, and be off by 1e-2."""
    linear = moved(constrain(nn.Linear(p, 64), "weight", Stiefel))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(2, p)).dtype == torch.bfloat16
        assert error(linear.weight) < 1e-5
        assert linear.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("late", [False, True])
def test_half_precision_rounds_last(dtype: torch.dtype, late: bool) -> None:
    """Coordinates and base stay in float32; only the result is rounded."""
    torch.manual_seed(3)
    linear: Any = nn.Linear(16, 16) if late else nn.Linear(16, 16).to(dtype)
    constrain(linear, "weight", Orthogonal)
    if late:
        linear.to(dtype)
    moved(linear)
    held = linear.parametrizations.weight
    assert held.original.dtype == held[0].base_point.dtype == torch.float32
    assert linear.weight.dtype == linear.bias.dtype == dtype
    exact = held[0].evaluate(held.original)
    assert error(exact) < 1e-5
    assert torch.equal(linear.weight, exact.to(dtype))
    output = linear(torch.randn(2, 16, dtype=dtype))
    assert output.dtype == dtype
    output.sum().backward()
    assert held.original.grad.dtype == torch.float32
    linear.float()
    torch.testing.assert_close(linear.weight, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_weight_may_be_assigned_to_itself(dtype: torch.dtype) -> None:
    linear: Any = moved(constrain(nn.Linear(8, 8, dtype=dtype), "weight", Stiefel))
    for value in (linear.weight.detach(), linear.weight.detach().float()):
        linear.weight = value
        torch.testing.assert_close(linear.weight.detach(), value.to(dtype), rtol=0, atol=2 * torch.finfo(dtype).eps)
        assert error(linear.parametrizations.weight[0].base_point) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_to_a_plain_parameter(dtype: torch.dtype) -> None:
    linear: Any = moved(constrain(nn.Linear(8, 8, dtype=dtype), "weight", Stiefel))
    weight = linear.weight.detach().clone()
    unconstrain(linear, "weight")
    assert linear.weight.dtype == dtype
    assert torch.equal(linear.weight, weight)
    linear.weight.sum().backward()


# Copies -----------------------------------------------------------------------------------------------------------


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # type: ignore[no-any-return]


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def twice(module: nn.Module) -> nn.Module:
    return copy.deepcopy(pickled(copy.deepcopy(module)))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved, twice])
@pytest.mark.parametrize("when", ["new", "after a pass", "after .to", "in a cache"])
def test_a_copy_is_equal_and_shares_nothing(copied: Any, when: str) -> None:
    gru = moved(constrained_gru())
    if when == "in a cache":
        with parametrize.cached():
            gru(X)
            other = copied(gru)
    else:
        if when == "after a pass":
            gru(X)[0].sum().backward()
        if when == "after .to":
            gru(X)
            gru.to(torch.float64).to(torch.float32)
        other = copied(gru)
    output = gru(X)[0]
    assert torch.equal(other(X)[0], output)
    mine = {t.data_ptr() for t in gru.state_dict().values()}
    assert mine.isdisjoint(t.data_ptr() for t in other.state_dict().values())
    moved(other)
    assert torch.equal(gru(X)[0], output)
    weight = other.weight_hh_l0.detach().clone()
    unconstrain(other, "*")
    assert torch.equal(other.weight_hh_l0, weight)
    assert torch.equal(gru(X)[0], output)
    unconstrain(gru, "*")
    assert type(gru) is type(other) is nn.GRU


def test_a_copy_keeps_ties() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one
            self.bias = self.one.bias

    net = copy.deepcopy(constrain(Net(), "one.weight", Stiefel))
    assert net.one is net.two
    assert net.bias is net.one.bias


@pytest.fixture(params=["data", "swap", "overwrite"])
def conversion(request: pytest.FixtureRequest) -> Iterator[str]:
    """The three ways in which torch moves a module."""
    torch.__future__.set_swap_module_params_on_conversion(request.param == "swap")
    torch.__future__.set_overwrite_module_params_on_conversion(request.param == "overwrite")
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_moving_a_module(conversion: str) -> None:
    gru = moved(constrained_gru())
    weight = gru.weight_hh_l0.detach()
    gru(X)
    gru.to(torch.float64)
    assert gru.weight_hh_l0.dtype == torch.float64
    assert error(gru.weight_hh_l0[:4]) < 1e-5
    torch.testing.assert_close(gru.weight_hh_l0.detach(), weight.double(), rtol=0, atol=1e-6)
    copy.deepcopy(gru)(X.double())[0].sum().backward()
    gru(X.double())[0].sum().backward()
    gru.half().float()(X)


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy])
def test_moving_an_rnn_computes_nothing(copied: Any, conversion: str, evaluations: list[int]) -> None:
    """Its coordinates may be memory without values, as after to_empty."""
    gru = copied(moved(constrained_gru()))
    output = gru(X)[0].detach()
    with torch.no_grad():
        kept = gru.parametrizations.weight_hh_l0.original.clone()
        gru.parametrizations.weight_hh_l0.original.fill_(math.nan)
        evaluations.clear()
        gru.double().float()
        assert evaluations == []
        gru.parametrizations.weight_hh_l0.original.copy_(kept)
    torch.testing.assert_close(gru(X)[0], output)
    gru.to("meta").to_empty(device="cpu")


def test_replicas_of_data_parallel_have_a_memo_of_their_own() -> None:
    linear: Any = constrain(nn.Linear(4, 4), "weight", Stiefel)
    held = linear.parametrizations.weight[0]
    assert held._replicate_for_data_parallel().memo is not held.memo
