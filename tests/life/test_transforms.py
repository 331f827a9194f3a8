"""Function transforms and compilers: functional_call, torch.func, ensembles, second derivatives, compile, export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from constraints import Riemannian, Trivialization, unconstrain
from constraints.method import Method

from .subjects import SUBJECTS, Subject, adam, batch, each, engine, objective, residual, riemannian, train, weights

# what torch itself can batch: its fused recurrent kernels it cannot
batchable = pytest.mark.parametrize(
    "subject", [s for s in SUBJECTS if s.name not in {"GRU", "LSTM"}], ids=lambda subject: subject.name
)
# what torch itself traces: a recurrent module is left out of graphs by default
traceable = batchable


def quietly(test: Any) -> Any:
    """Compilers warn of their own parts."""
    for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{category}")(test)
    return test


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def nearby(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Parameters some way from those of the model; of Riemannian ones, points."""
    torch.manual_seed(seed)
    other = copy.deepcopy(net)
    optimizer = adam(other, 0.1)
    train(other, optimizer, batch(seed=seed).to(next(net.parameters()).dtype))
    return parameters(other)


def loss_of(net: nn.Module, x: Tensor) -> Any:
    labels = (x[:, 0, 0] > 0).long() + (x[:, 1, 1] > 0).long()
    return lambda values: nn.functional.cross_entropy(functional_call(net, values, (x,)), labels)


@each
@engine
def test_functional_call_uses_the_values_that_are_given(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    assert torch.equal(functional_call(net, parameters(net), (x,)), net(x))
    before = net(x).detach()
    values = nearby(net, 3)
    moved = functional_call(net, values, (x,))
    assert (moved - before).abs().max() > 1e-3
    assert torch.equal(net(x), before)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(values[name])
    torch.testing.assert_close(net(x), moved)


@each
@engine
def test_grad_is_that_of_backward(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method, dtype=torch.float64), batch().double()
    gradients = grad(loss_of(net, x))(parameters(net))
    objective(net, x).backward()
    for name, p in net.named_parameters():
        expected = p.grad if p.requires_grad else torch.zeros_like(p)
        torch.testing.assert_close(gradients[name], expected, rtol=1e-9, atol=1e-12)


@batchable
@engine
def test_vmap_over_an_ensemble(subject: Subject, method: Method) -> None:
    net = subject.constrained(method)
    members = [net, *(subject.constrained(method, seed=k) for k in (1, 2))]
    x = batch()
    values, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(net).to("meta") if riemannian(net) else copy.deepcopy(net)

    def one(values: Any, buffers: Any) -> Tensor:
        return functional_call(skeleton, (values, buffers), (x,))

    with sdpa_kernel(SDPBackend.MATH):
        outputs = vmap(one)(values, buffers)
        for member, output in zip(members, outputs, strict=True):
            torch.testing.assert_close(output, member(x), rtol=1e-5, atol=1e-5)


@batchable
@engine
def test_gradients_per_sample(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method, dtype=torch.float64), batch().double()
    with sdpa_kernel(SDPBackend.MATH):
        labels = (x[:, 0, 0] > 0).long() + (x[:, 1, 1] > 0).long()

        def loss(values: Any, one: Tensor, label: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(net, values, (one[None],)), label[None])

        each_one = vmap(grad(loss), (None, 0, 0))
        gradients = each_one(parameters(net), x, labels)
        objective(net, x).backward()
    for name, p in net.named_parameters():
        expected = p.grad if p.requires_grad else torch.zeros_like(p)
        torch.testing.assert_close(gradients[name].mean(0), expected, rtol=1e-9, atol=1e-12)


@each
@engine
def test_double_backward_is_the_derivative_of_the_gradient(subject: Subject, method: Method) -> None:
    """A penalty on the gradient by the input: its derivative along a line, against a difference."""
    net, x = subject.constrained(method, dtype=torch.float64), batch().double()
    values = [p for p in net.core.parameters() if p.requires_grad]
    torch.manual_seed(4)
    along = [torch.randn_like(p) for p in values]

    def penalty() -> Tensor:
        inside = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(net, inside), inside, create_graph=True)
        return slope.square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(penalty(), values, allow_unused=True)
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)

        def at(t: float) -> float:
            with torch.no_grad():
                torch._foreach_add_(values, along, alpha=t)
            value = float(penalty().detach())
            with torch.no_grad():
                torch._foreach_add_(values, along, alpha=-t)
            return value

        step = 1e-4
        difference = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


@quietly
@batchable
@engine
def test_forward_mode_is_the_derivative(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method, dtype=torch.float64), batch().double()
    if subject.name == "MultiheadAttention":
        net.train()
    torch.manual_seed(4)
    along = torch.randn_like(x)
    values = parameters(net)
    with sdpa_kernel(SDPBackend.MATH):
        _, tangent = jvp(lambda inside: functional_call(net, values, (inside,)), (x,), (along,))
        difference = (net(x + 1e-5 * along) - net(x - 1e-5 * along)) / 2e-5
    torch.testing.assert_close(tangent, difference.detach(), rtol=1e-6, atol=1e-8)


# Compilers --------------------------------------------------------------------------------------------------------


@quietly
@traceable
@engine
def test_a_model_compiles_to_one_graph_and_trains(subject: Subject, method: Method) -> None:
    torch._dynamo.reset()
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    optimizer, other = adam(net), adam(twin)
    for _ in range(3):
        optimizer.zero_grad()
        objective(compiled, x).backward()
        optimizer.step()
        train(twin, other, x)
    assert residual(net) < 1e-5
    for name, weight in weights(twin).items():
        torch.testing.assert_close(weights(net)[name], weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)


@quietly
@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.name in {"GRU", "LSTM"}], ids=lambda s: s.name)
@engine
def test_a_recurrent_model_compiles_with_breaks(subject: Subject, method: Method) -> None:
    torch._dynamo.reset()
    net, x = subject.constrained(method), batch()
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
    objective(compiled, x).backward()
    adam(net).step()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
    assert residual(net) < 1e-5


@quietly
@each
@engine
def test_a_compiled_step_is_the_step(subject: Subject, method: Method) -> None:
    torch._dynamo.reset()
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    optimizer, other = adam(net), adam(twin)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        optimizer.zero_grad()
        objective(net, x).backward()
        step()
        train(twin, other, x)
    assert residual(net) < 1e-5
    for name, weight in weights(twin).items():
        torch.testing.assert_close(weights(net)[name], weight, rtol=0, atol=1e-5)


@quietly
@each
@engine
def test_a_released_model_is_exported(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method).eval(), batch()
    output = net(x).detach()
    unconstrain(net, "*")
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), output, rtol=1e-5, atol=1e-6)
    assert set(program.state_dict) == set(net.state_dict())


@quietly
@each
def test_a_riemannian_model_is_exported_as_it_is(subject: Subject) -> None:
    net, x = subject.constrained(Riemannian()).eval(), batch()
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-6)


@quietly
@traceable
def test_a_trivialized_model_exports_its_retraction(subject: Subject) -> None:
    net, x = subject.constrained(Trivialization()).eval(), batch()
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-5)
