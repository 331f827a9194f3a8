"""What else a process does with a module that is constrained: it interrupts it, looks into it, freezes it, draws it
anew. Nothing may be silently lost or changed."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from constraints import Riemannian, Trivialization, constrain, export_state_dict, rebase, report, unconstrain
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import (
    Composition,
    Invertible,
    LowRank,
    Manifold,
    Oblique,
    Orthogonal,
    PositiveDefinite,
    Scaled,
    Simplex,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

HELD: dict[str, tuple[Manifold | Composition, Method]] = {
    "trivialized": (Orthogonal(), Trivialization()),
    "Riemannian": (Orthogonal(), Riemannian()),
    "composed, trivialized": (Scaled(Orthogonal()), Trivialization()),
    "composed, Riemannian": (LowRank(2), Riemannian()),
}
each_held = pytest.mark.parametrize("held", HELD)
each_computed = pytest.mark.parametrize("held", [key for key in HELD if key != "Riemannian"])


def hold(module: Any, held: str, name: str = "weight", **options: Any) -> Any:
    return constrain(module, name, *HELD[held], **options)


def trained(module: nn.Module, steps: int = 1) -> None:
    optimizer = RiemannianAdam(module, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(torch.ones(4, 4)) - torch.eye(4, 4)).square().sum().backward()
        optimizer.step()


# Passes that never end ------------------------------------------------------------------------------------


class Interrupted(nn.Linear):
    stops = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.stops:
            raise KeyboardInterrupt
        return y


def load(module: Any, other: Any) -> None:
    module.load_state_dict(other.state_dict())


def assign(module: Any, other: Any) -> None:
    module.weight = other.weight.detach()


def over_parameters(module: Any, other: Any) -> None:
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)


def from_vector(module: Any, other: Any) -> None:
    """Which gives `.data` other memory, and leaves no version."""
    vector = nn.utils.parameters_to_vector(other.parameters()).detach()
    nn.utils.vector_to_parameters(vector, module.parameters())


@each_computed
@pytest.mark.parametrize("write", [load, assign, over_parameters, from_vector])
@pytest.mark.parametrize("ends", ["KeyboardInterrupt", "hooks that were cleared"])
def test_a_weight_is_that_of_now_after_a_pass_that_never_ended(
    held: str, write: Callable[[Any, Any], None], ends: str
) -> None:
    """torch calls no hook after KeyboardInterrupt, and none that others have taken away."""
    module, other = (hold(Interrupted(4, 4, bias=False), held, init="haar") for _ in range(2))
    if ends == "KeyboardInterrupt":
        module.stops = True
        with pytest.raises(KeyboardInterrupt):
            module(torch.ones(1, 4))
    else:
        module._forward_hooks.clear()
        module(torch.ones(1, 4))
    write(module, other)
    torch.testing.assert_close(module.weight, other.weight)
    assert torch.equal(export_state_dict(module)["weight"], module.weight)


# Looking into a module ------------------------------------------------------------------------------------


@each_held
def test_whoever_looks_at_all_attributes_changes_none(held: str) -> None:
    """As debuggers and inspect.getmembers do; a property of torch's list is where it asks before it removes one."""
    module = hold(nn.Linear(4, 4), held, init="haar")
    trained(module)
    weight, text = module.weight.detach().clone(), str(report(module))
    for each in list(module.modules()):
        inspect.getmembers(each)
    assert torch.equal(module.weight, weight)
    assert str(report(module)) == text


def test_a_module_that_forwards_attributes_has_none_of_them() -> None:
    """A wrapper with __getattr__, as those for adapters, has a "weight" that is not its own."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    for held in HELD:
        model = Wrapper(nn.Linear(4, 4))
        hold(model, held, "*weight")
        if not isinstance(HELD[held][0], Composition):
            hold(model, held, "*weight")  # once more, and not "weight" of the wrapper
        trained(model)
        assert {row.name for row in report(model)} >= {"inner.weight"}
        assert sorted(export_state_dict(unconstrain(model, "*weight"))) == ["inner.bias", "inner.weight"]


# Backward passes of before --------------------------------------------------------------------------------

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x @ w": lambda x, w: x @ w,
    "x w": lambda x, w: x * w,
    "x exp w": lambda x, w: x * w.exp(),
    "einsum": lambda x, w: torch.einsum("bi,ij->bj", x, w),
}


class Applied(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.randn(4, 4)), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@each_held
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("act", ["constrain", "unconstrain", "remove", "assign", "rebase"])
def test_a_backward_pass_of_before_is_right_or_an_error(held: str, product: str, act: str) -> None:
    """A graph has the Parameter, and not the values that it had."""
    module = Applied(PRODUCTS[product])
    if act != "constrain":
        trained(hold(module, held, init="haar"), 3)
    x = torch.randn(4, 4, requires_grad=True)
    (right,) = torch.autograd.grad(module(x).square().sum(), x)
    loss = module(x).square().sum()
    if act == "constrain":
        hold(module, held, init="haar")
    elif act == "unconstrain":
        unconstrain(module, "weight")
    elif act == "remove" and held == "trivialized":
        parametrize.remove_parametrizations(module, "weight")
    elif act == "assign" and held != "Riemannian":
        module.weight = module.weight.detach()
    elif act == "rebase":
        rebase(module)
    try:
        loss.backward()
    except RuntimeError:  # of torch, which saw a write
        return
    assert x.grad is not None
    torch.testing.assert_close(x.grad, right)


# Modules that cannot be held, and what they leave alone --------------------------------------------------


class Final(nn.Linear):
    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("Final is final")


@each_computed
def test_a_class_of_which_none_is_derived_is_refused_and_nothing_changed(held: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Final(4, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1\.weight of Final\(.*Riemannian\(\)"):
        hold(model, held, "*.weight")
    assert not report(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    constrain(model, "*.weight", Orthogonal, Riemannian())  # the way out
    trained(model)


JIT: dict[str, Callable[[nn.Module], Any]] = {
    "script": torch.jit.script,
    "trace": lambda module: torch.jit.trace(module, torch.ones(1, 4)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each_held
@pytest.mark.parametrize("make", JIT)
def test_a_model_may_have_modules_of_torch_jit(held: str, make: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), JIT[make](nn.Linear(4, 4)))
    hold(model, held, "0.weight")
    trained(model, 2)
    rebase(model)
    model.load_state_dict(model.state_dict())
    plain = export_state_dict(model)
    assert sorted(plain) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    with pytest.raises(ValueError, match=r"torch\.jit cannot be held"):
        hold(model, held, "1.weight")
    torch.testing.assert_close(unconstrain(model, "0.weight")[0].weight.detach(), plain["0.weight"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each_computed
@pytest.mark.parametrize("make", JIT)
def test_a_parameter_that_torch_jit_has_too_is_not_taken_from_it(held: str, make: str) -> None:
    layer = nn.Linear(4, 4)
    jit, x, before = JIT[make](layer), torch.randn(2, 4), layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"torch\.jit cannot be held"):
        hold(layer, held)
    assert torch.equal(layer.weight, before)
    assert torch.equal(jit(x), layer(x))
    constrain(layer, "weight", Orthogonal, Riemannian())
    torch.testing.assert_close(jit(x), layer(x))


def test_ties_are_found_after_gc_freeze() -> None:
    """As processes do before they fork."""
    first, second, composed = nn.Linear(4, 4), nn.Linear(4, 4), hold(nn.Linear(4, 4), "composed, trivialized")
    second.weight = first.weight
    gc.freeze()
    try:
        constrain(first, "weight", Orthogonal)
        unconstrain(composed, "weight")
    finally:
        gc.unfreeze()
    with torch.no_grad():
        first.parametrizations.weight.original.add_(0.1)  # type: ignore[union-attr,operator]
    assert torch.equal(first.weight, second.weight)
    assert type(composed.weight) is nn.Parameter


@each_held
def test_what_a_layer_rescales_in_place_is_refused(held: str) -> None:
    layer = nn.Embedding(4, 4, max_norm=0.5)
    with pytest.raises(ValueError, match=r"module\.max_norm = None"):
        hold(layer, held)
    layer.max_norm = None
    hold(layer, held)
    layer(torch.arange(4)).sum().backward()
    RiemannianAdam(layer, lr=0.1).step()


def weight_norm(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)


def spectral_norm(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@each_held
@pytest.mark.parametrize("older", [weight_norm, spectral_norm, pruned])
def test_what_an_older_function_of_torch_computes_is_refused_by_any_name(
    held: str, older: Callable[[nn.Module], None]
) -> None:
    """And what it computes from is no weight: nothing that is used would be on the manifold."""
    layer = nn.Linear(4, 4)
    older(layer)
    messages = set()
    for name in ["weight", *(name for name in layer._parameters if name != "bias")]:
        with pytest.raises(ValueError, match="constrain") as caught:
            hold(layer, held, name)
        messages.add(str(caught.value).partition("Call ")[2].partition(" first")[0])
    (way,) = messages
    exec(way, {"torch": torch, "module": layer})
    trained(hold(layer, held, init="haar"))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@each_held
@pytest.mark.parametrize("dtype", [torch.complex32, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_the_way_out_for_other_dtypes(held: str, dtype: torch.dtype) -> None:
    module: Any = nn.Module()
    module.weight = nn.Parameter(torch.eye(4).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match="Put another in its place") as caught:
        hold(module, held)
    exec(str(caught.value).partition("in its place, ")[2].removesuffix("."), {"torch": torch, "module": module})
    hold(module, held)


@each_held
def test_a_constraint_made_in_inference_mode_trains(held: str) -> None:
    layer = nn.Linear(4, 4)
    with torch.inference_mode():
        hold(layer, held)
    trained(layer, 2)
    with torch.inference_mode():  # and what never trains may be held
        made = hold(nn.Linear(4, 4), held)
        made(torch.ones(1, 4))
    assert all(row.ok for row in [*report(layer), *report(made)])


# New draws ------------------------------------------------------------------------------------------------


class Drawn(nn.Module):
    """Draws new Parameters, in place of the old ones."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.draw = draw
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.bias = nn.Parameter(torch.zeros(4))
        self.weight = nn.Parameter(self.draw())
        self.norm = nn.LayerNorm(4)


@each_computed
def test_parameters_that_a_reset_makes_are_taken(held: str) -> None:
    module = hold(Drawn(lambda: torch.randn(4, 4)), held)
    with torch.no_grad():
        module.bias.fill_(3.0)
        module.norm.weight.fill_(3.0)
    before = module.weight.detach().clone()
    module.reset_parameters()
    assert (module.bias == 0).all()
    assert (module.norm.weight == 1).all()
    assert (module.weight - before).norm() > 0.1
    assert all(row.ok for row in report(module))


RESET: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "no nearest point": (PositiveDefinite, lambda: torch.randn(4, 4)),
    "no nearest point, vectors": (Simplex, lambda: torch.randn(4, 4)),
    "reflections": (SpecialOrthogonal, lambda: torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0]))),
    "zeros": (Stiefel, lambda: torch.zeros(4, 4)),
    "zeros, composed": (Invertible(), lambda: torch.zeros(4, 4)),
}


@pytest.mark.parametrize("kind", RESET)
def test_a_reset_is_a_random_point_where_none_is_nearest(kind: str) -> None:
    manifold, draw = RESET[kind]
    module: Any = constrain(Drawn(draw), "weight", manifold, init="haar")
    for _ in range(2):
        before = module.weight.detach().clone()
        module.reset_parameters()
        assert all(row.ok for row in report(module))
        assert not torch.equal(module.weight, before)


@each_computed
def test_a_reset_to_nan_changes_nothing(held: str) -> None:
    class Layer(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "broken"):
                nn.init.constant_(self.weight, float("nan"))

    layer = hold(Layer(4, 4), held)
    layer.broken = True
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="NaN"):
        layer.reset_parameters()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


# Copies, threads, batches of nothing ----------------------------------------------------------------------


class Locked(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lock = threading.Lock()


@each_held
def test_a_class_that_says_how_it_is_copied_is_copied_so(held: str) -> None:
    layer = hold(Locked(4, 4), held)
    trained(layer)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight, layer.weight)
    assert twin.lock is not layer.lock
    trained(twin)
    assert not torch.equal(twin.weight, layer.weight)


RECURRENT = [nn.RNN, nn.GRU, nn.LSTM]


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("other", ["evaluates", "trains"])
def test_passes_of_an_rnn_in_two_threads_have_weights_of_their_own(kind: Any, other: str) -> None:
    """torch writes the weights of a pass into the layer, where those of another thread would be taken for them."""

    class Layer(kind):  # type: ignore[misc]
        meanwhile: Callable[[], None] | None = None

        def check_forward_args(self, *args: Any) -> None:
            """What torch calls between writing and reading."""
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                thread = threading.Thread(target=meanwhile)
                thread.start()
                thread.join()
            super().check_forward_args(*args)

    layer: Any = constrain(Layer(4, 4), "weight_hh_l0", Stiefel ** {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind])
    x = torch.randn(3, 2, 4)
    wanted = [p for p in layer.parameters() if p.requires_grad]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0].square().sum(), wanted)

    def meanwhile() -> None:
        if other == "trains":
            gradients()
        else:
            with torch.no_grad():
                layer(x)

    right = gradients()
    layer.meanwhile = meanwhile
    for g, r in zip(gradients(), right, strict=True):
        torch.testing.assert_close(g, r)


@pytest.mark.parametrize("manifold", [Sphere(), Oblique(), Stiefel(), PositiveDefinite(), LowRank(1)], ids=str)
def test_a_batch_of_no_points_lives_like_any_other(manifold: Any) -> None:
    module: Any = nn.Module()
    module.weight = nn.Parameter(torch.zeros(0, 3, 3))
    constrain(module, "weight", manifold)
    assert all(row.ok for row in report(module))
    module.weight.sum().backward()
    torch.optim.Adam(p for p in module.parameters() if p.requires_grad).step()
    rebase(module)
    module.load_state_dict(module.state_dict())
    module.load_state_dict(export_state_dict(module))
    unconstrain(copy.deepcopy(module), "weight")


class Counted(list[Any]):
    """Parameters that count how often they are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        Counted.passes += 1
        return super().__iter__()


def test_a_step_goes_through_the_parameters_as_often_for_many_tensors_as_for_few() -> None:
    """And not once more for each, which is quadratic."""

    def passes(layers: int) -> int:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
        constrain(model, "*.weight", Orthogonal)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["params"] = Counted(optimizer.param_groups[0]["params"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        Counted.passes = 0
        optimizer.step()
        return Counted.passes

    assert passes(2) == passes(9)


# Loading in place of what is there ------------------------------------------------------------------------

ASSIGNED = [torch.float32, torch.float64, torch.bfloat16]


@each_held
@pytest.mark.parametrize("keys", ["plain", "constrained"])
@pytest.mark.parametrize("dtype", ASSIGNED, ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_assigned_checkpoint_brings_its_dtype_and_device(
    held: str, keys: str, dtype: torch.dtype, device: str
) -> None:
    """load_state_dict(assign=True), as for a model without memory; coordinates, bases and parts are never rounded."""
    source = hold(nn.Linear(4, 4), held, init="haar")
    state = export_state_dict(source) if keys == "plain" else source.state_dict()
    model = copy.deepcopy(source).to(device)
    model.load_state_dict({key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}, assign=True)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(model.weight.float(), source.weight.float(), rtol=0, atol=16 * eps)
    assert {model.weight.dtype, model.bias.dtype} == {dtype}
    least = torch.promote_types(dtype, torch.float32)
    assert all(p.dtype == least for key, p in model.named_parameters() if "parametrizations" in key)
    optimizer = RiemannianAdam(model, lr=0.1)
    model(torch.ones(1, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    assert all(row.ok for row in report(model))


@each_held
def test_an_assigned_checkpoint_that_is_refused_changes_nothing(held: str) -> None:
    model = hold(nn.Linear(4, 4), held, init="haar")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {"weight": torch.full((4, 4), float("nan"), dtype=torch.float64), "bias": torch.zeros(4)}
    with pytest.raises(ValueError, match="finite"):
        model.load_state_dict(state, assign=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.weight.dtype == torch.float32


# What optimizers and names refer to -----------------------------------------------------------------------


def test_an_optimizer_of_parameters_that_are_gone_is_refused() -> None:
    """A composition has new Parameters, and so has what it leaves."""
    layer = nn.Linear(4, 4)
    for change in (lambda: constrain(layer, "weight", LowRank(2)), lambda: unconstrain(layer, "weight")):
        optimizer = torch.optim.Adam(layer.parameters())
        change()
        layer(torch.ones(1, 4)).sum().backward()
        with pytest.raises(ValueError, match="Make the optimizer again"):
            optimizer.step()
        before = layer.weight.detach().clone()
        torch.optim.Adam(layer.parameters(), lr=0.1).step()  # the way out
        assert not torch.equal(layer.weight, before)


@each_held
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_tensor_of_two_names_is_let_go_by_either(held: str, name: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Parameter(torch.randn(4, 4))

    module = hold(Twice(), held, "a", init="haar")
    assert torch.equal(module.a, module.b)
    unconstrain(module, name)
    assert not report(module)
    assert module.a is module.b


@each_computed
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_in_place_is_an_error_in_any_mode(held: str, mode: Any) -> None:
    layer = hold(nn.Linear(4, 4), held)
    with mode():
        nn.init.zeros_(layer.weight)
    with pytest.raises(ValueError, match="changed in place"):
        layer(torch.ones(1, 4))
