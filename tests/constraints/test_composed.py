"""Weights composed of several points: held by both engines, and every item of the life of a model."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import (
    AveragedModel,
    Riemannian,
    Trivialization,
    constrain,
    export_state_dict,
    load_checked,
    param_groups,
    rebase,
    report,
    unconstrain,
)
from constraints.composing import admitted
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import (
    BlockSpec,
    Composition,
    Hurwitz,
    Invertible,
    Isospectral,
    LowRank,
    Orthostochastic,
    PositiveSemidefinite,
    Scaled,
    SpectralBall,
    SpectralSphere,
    Stiefel,
)

KINDS: list[Composition] = [
    LowRank(2),
    SpectralBall(0.8),
    SpectralSphere(0.8),
    Isospectral(),
    PositiveSemidefinite(),
    Orthostochastic(),
    Scaled(Stiefel**2),
    Invertible(),
    Hurwitz(0.1),
    LowRank(1) ** 2,
    LowRank(1) * Stiefel,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
NO_NEAREST = (Orthostochastic, Invertible, Hurwitz)
methods = pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)


def made(kind: Composition, method: Method, seed: int = 0, **options: Any) -> nn.Linear:
    torch.manual_seed(seed)
    init = "haar" if type(kind) in NO_NEAREST else None
    return constrain(nn.Linear(4, 4), "weight", kind, method, **{"init": init, **options})


def optimizer(model: nn.Module, method: Method, lr: float = 2e-2) -> torch.optim.Optimizer:
    if isinstance(method, Riemannian):
        return RiemannianAdam(model, lr)
    return torch.optim.Adam(param_groups(model), lr)


def train(model: nn.Module, opt: torch.optim.Optimizer, target: Tensor, steps: int = 5) -> float:
    loss = torch.tensor(0.0)
    for _ in range(steps):
        opt.zero_grad()
        loss = (model(torch.eye(4)) - target).square().mean()
        loss.backward()
        opt.step()
    return float(loss.detach())


@kinds
@methods
def test_a_composed_weight_is_learned(kind: Composition, method: Method) -> None:
    """To a target of its own form, from another start: the loss falls by ten."""
    model = made(kind, method)
    target = kind.random(4, 4, generator=torch.Generator().manual_seed(5)).mT
    if kind == Isospectral():  # a target with its singular values
        target = Stiefel().random(4, 4) @ model.weight.detach().mT @ Stiefel().random(4, 4)
    before = float((model.weight.detach().mT + model.bias.detach() - target).square().mean())
    after = train(model, optimizer(model, method), target, 300)
    assert after < before / 10, (before, after)
    assert float(kind.residual(model.weight.detach()).max()) < 1e-5
    assert all(record.ok for record in report(model))


@kinds
@methods
def test_the_life_of_a_composed_weight(kind: Composition, method: Method) -> None:
    model = made(kind, method)
    opt = optimizer(model, method)
    target = torch.randn(4, 4)
    train(model, opt, target)
    x, weight = torch.randn(3, 4), model.weight.detach().clone()

    plain = nn.Linear(4, 4)
    plain.load_state_dict(export_state_dict(model))
    assert torch.equal(plain.weight, weight)
    for other in (copy.deepcopy(model), _through_a_file(model)):
        assert torch.equal(other.weight, weight)
        train(other, optimizer(other, method), target)
        assert not torch.equal(other.weight, weight)
        assert torch.equal(model.weight, weight)

    same = made(kind, method, seed=1)
    same.load_state_dict(model.state_dict())
    assert torch.equal(same.weight, weight)
    new = optimizer(same, method)
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert train(same, new, target) == train(model, opt, target)
    assert torch.equal(same.weight, model.weight)

    weight = model.weight.detach().clone()
    unconstrain(model, "weight")
    assert type(model) is nn.Linear
    assert isinstance(model.weight, nn.Parameter)
    assert torch.equal(model.weight, weight)
    assert list(model.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(model(x), x @ weight.mT + model.bias)
    assert report(model) == []


def _through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@kinds
@methods
def test_a_plain_checkpoint_loads_through_decompose(kind: Composition, method: Method) -> None:
    if kind == Isospectral():
        pytest.skip("every matrix is isospectral to itself: what is loaded brings its own singular values")
    model = made(kind, method)
    saved = {"weight": kind.random(4, 4), "bias": torch.zeros(4)}
    load_checked(model, saved)
    torch.testing.assert_close(model.weight, saved["weight"], rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="weight of the checkpoint"):
        model.load_state_dict({"weight": torch.diag(torch.tensor([1.0, 5, 5, -5])), "bias": torch.ones(4)})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_loaded_isospectral_weight_brings_its_singular_values() -> None:
    model = made(Isospectral(), Riemannian())
    model.load_state_dict({"weight": torch.diag(torch.tensor([4.0, 3, 2, 1])), "bias": torch.zeros(4)})
    torch.testing.assert_close(torch.linalg.svdvals(model.weight), torch.tensor([4.0, 3, 2, 1]))


@kinds
@methods
def test_values_are_assigned_averaged_and_reset(kind: Composition, method: Method) -> None:
    model = made(kind, method)
    point = kind.random(4, 4)
    model.weight = point
    torch.testing.assert_close(model.weight, point, rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    with pytest.raises(ValueError, match="shape"):
        model.weight = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"NaN"):
        model.weight = torch.full((4, 4), torch.nan)
    torch.testing.assert_close(model.weight, point, rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    average = AveragedModel(model)
    average.update_parameters(model)
    train(model, optimizer(model, method), torch.zeros(4, 4), 1)
    average.update_parameters(model)
    assert all(record.ok for record in report(average))
    if type(kind) not in NO_NEAREST:
        model.reset_parameters()
        assert float(kind.residual(model.weight.detach()).max()) < 1e-5
    rebase(model)


@methods
def test_names_groups_and_reports_speak_of_the_weight_and_its_parts(method: Method) -> None:
    model = nn.Sequential(nn.Linear(4, 4), made(LowRank(2), method))
    assert [record.name for record in report(model)] == ["1.weight", "1.weight.u", "1.weight.v"]
    assert "its parts" in str(report(model))
    held = {name for group in param_groups(model) for name, _ in group["params"]}
    end = ".original" if method == Trivialization() else ""
    inside = ".parametrizations" if end else ""
    assert {f"1.parametrizations.weight.0{inside}.{part}{end}" for part in "uv"} < held
    assert "1.parametrizations.weight.0.s" in held
    with pytest.raises(ValueError, match=r"by LowRank\(rank=2\)\. Call unconstrain .*reset_parameters\(\)"):
        constrain(model, "1.weight", LowRank(2), method)


@methods
@pytest.mark.parametrize("composition", [LowRank(2), Scaled(Stiefel), SpectralBall()], ids=repr)
def test_reset_parameters_draws_a_new_start(composition: Composition, method: Method) -> None:
    """The way out of the message above, for the next fold."""
    layer = made(composition, method)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert (layer.weight - before).abs().max() > 0.01
    assert all(record.ok for record in report(layer))


@methods
def test_packed_batched_and_tied_weights(method: Method) -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", LowRank(2) ** 3, method)
    ranks = [int(torch.linalg.matrix_rank(w.double(), atol=1e-5)) for w in gru.weight_hh_l0.detach().chunk(3)]
    assert ranks == [2, 2, 2]
    gru(torch.randn(5, 2, 3))[0].sum().backward()
    with pytest.raises(ValueError, match=r"[Ww]rite LowRank\(rank=2\)\*\*3"):
        constrain(nn.GRU(3, 4), "weight_hh_l0", LowRank(2), method)
    layout = BlockSpec.pattern("(h q d) e -> (h q) d e", h=2, q=3)
    packed = constrain(nn.Linear(5, 12), "weight", SpectralBall(), method, layout=layout)
    for block in layout.unpack(packed.weight.detach()):
        assert float(torch.linalg.matrix_norm(block, ord=2)) <= 1 + 1e-6
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    constrain(tied, "a.weight", LowRank(1), method)
    assert torch.equal(tied["a"].weight, tied["b"].weight)
    assert len([name for name, _ in tied.named_parameters() if name.endswith("0.s")]) == 1
    unconstrain(tied, "a.weight")
    assert tied["a"].weight is tied["b"].weight
    assert isinstance(tied["b"].weight, nn.Parameter)


@methods
def test_a_pass_computes_a_composed_weight_once(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    gru = constrain(nn.GRU(3, 4), "weight_hh_l0", LowRank(2) ** 3, method)
    calls = 0
    plain = LowRank.compose

    def counted(self: LowRank, **points: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(self, **points)

    monkeypatch.setattr(LowRank, "compose", counted)
    gru(torch.randn(5, 2, 3))
    assert calls == 1


@methods
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_dtypes(method: Method, dtype: torch.dtype) -> None:
    model = nn.Linear(4, 4, bias=False, dtype=dtype)
    constrain(model, "weight", LowRank(2), method)
    assert model.weight.dtype == dtype
    model.weight.abs().sum().backward()
    assert {p.dtype.itemsize >= 4 for p in model.parameters()} == {True}
    if not dtype.is_complex:
        assert made(LowRank(2), method).to(dtype).weight.dtype == dtype


@methods
def test_a_composed_weight_under_functional_call_and_vmap(method: Method) -> None:
    model = made(LowRank(2), method)
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, torch.eye(4)).square().sum()  # type: ignore[no-any-return]

    grads = torch.func.grad(loss)(parameters)
    model(torch.eye(4)).square().sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(grads[name], p.grad)


@pytest.mark.parametrize(
    ("init", "message"),
    [("torus", "'haar'"), (torch.zeros(3, 3), "shape"), (torch.eye(4), "not of the form"), ("identity", "not of the")],
)
def test_a_start_without_parts_is_refused_and_nothing_is_changed(init: Any, message: str) -> None:
    model = nn.Linear(4, 4)
    before = model.weight
    with pytest.raises(ValueError, match=message):
        constrain(model, "weight", LowRank(2), init=init)
    assert model.weight is before
    with pytest.raises(TypeError, match="needs a manifold"):
        constrain(model, "weight", 3)  # type: ignore[arg-type]


STARTS = {
    "zero": torch.zeros(4, 4),
    "identity": torch.eye(4),
    "permutation": torch.eye(4)[[1, 0, 3, 2]],
    "constant": torch.full((4, 4), 0.25),
    "small": 1e-6 * torch.eye(4),
}


@kinds
@methods
@pytest.mark.parametrize("start", STARTS)
def test_a_start_from_which_nothing_moves_is_refused(kind: Composition, method: Method, start: str) -> None:
    """As the identity of squared entries, where every derivative is zero: it would stay there without a word."""
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(STARTS[start])
    try:
        constrain(linear, "weight", kind, method)
    except ValueError:
        assert torch.equal(linear.weight, STARTS[start])
        assert list(dict(linear.named_parameters())) == ["weight", "bias"]
        return
    before = linear.weight.detach().clone()
    opt = optimizer(linear, method, 1e-2)
    for _ in range(3):
        opt.zero_grad()
        (linear.weight * torch.tensor(RANDOM)).sum().backward()
        opt.step()
    # a hundredth of what the same steps make of a free weight of this size
    assert float((linear.weight.detach() - before).norm()) > 1e-4 * float(before.norm().clamp_min(1e-6))


RANDOM = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).tolist()


@methods
@pytest.mark.parametrize("kind", [Orthostochastic(), Orthostochastic() ** 2, LowRank(2) * Orthostochastic()], ids=str)
def test_every_block_of_a_start_can_move(kind: Composition, method: Method) -> None:
    """Assigned later as well; nothing is changed then."""
    rows = 4 * len(kind) if hasattr(kind, "__len__") else 4
    eye = torch.eye(4).repeat(rows // 4, 1)
    linear = nn.Linear(4, rows)
    with pytest.raises(ValueError, match="no gradient moves it"):
        constrain(linear, "weight", kind, method, init=eye)
    with pytest.raises(ValueError, match="no gradient moves it"):
        constrain(linear, "weight", kind, method, init="identity")
    constrain(linear, "weight", kind, method, init="haar")
    before = linear.weight.detach().clone()
    with pytest.raises(ValueError, match="no gradient moves it"):
        linear.weight = eye
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize(
    "kind", [Scaled(Stiefel()), LowRank(4), Isospectral(), PositiveSemidefinite(), Invertible()], ids=str
)
def test_overflow_is_no_zero_derivative(kind: Composition) -> None:
    """|W| of twice the largest number of float32; what is below moves, however large or small it is."""
    linear: Any = constrain(nn.Linear(4, 4), "weight", kind, init="haar")
    with pytest.raises(ValueError, match=r"not finite in float32.*smaller entries"):
        linear.weight = 3.3e38 * torch.eye(4)
    for size in (1e30, 1e-30):
        linear.weight = size * torch.eye(4)
        torch.testing.assert_close(linear.weight / size, torch.eye(4))


@dataclass(frozen=True)
class Broken(Composition):
    """A part that is its own tensor, but for an entry that is NaN."""

    def parts(self, shape: Any) -> Any:
        return {"x": (None, tuple(shape))}

    def compose(self, *, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([x[:1] * torch.nan, x[1:]])

    def decompose(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


def test_what_composes_to_nan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is not of the form Broken.*4 of 16 entries, the first at index \(0, 0\)"):
        admitted(Broken(), torch.eye(4), torch.eye(4), "weight")


PARTS = [(Scaled(Stiefel()), "gain"), (Scaled(Stiefel()), "point"), (Scaled(Stiefel()) ** 2, "gain"), (LowRank(2), "u")]


def by_other_optimizer(model: Any, part: nn.Parameter) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def by_parameters(model: Any, part: nn.Parameter) -> None:
    RiemannianAdam(list(model.parameters()))


def by_step(model: Any, part: nn.Parameter) -> None:
    optimizer = RiemannianAdam(model)
    with torch.no_grad():
        part.fill_(-1)
    part.grad = torch.zeros_like(part)
    optimizer.step()


def by_making(model: Any, part: nn.Parameter) -> None:
    with torch.no_grad():
        part.fill_(-1)
    RiemannianAdam(model)


@pytest.mark.parametrize("act", [by_other_optimizer, by_parameters, by_step, by_making])
@pytest.mark.parametrize(("composition", "part"), PARTS)
def test_an_optimizer_calls_a_part_by_its_dotted_name(composition: Any, part: str, act: Any) -> None:
    """As constrain does, or as named_parameters does."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, "1.weight", composition, Riemannian(), init="haar")
    names = f"1.weight.{part}", f"1.parametrizations.weight.0.{part}"
    parameter = model.get_parameter(names[1])
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if act is by_other_optimizer and p is parameter else None
    if act is by_other_optimizer or act is by_parameters:
        names = ("1.weight.", "1.weight.")  # of one of them
    with pytest.raises(ValueError, match="|".join(f"^{re.escape(name)}" for name in names)):
        act(model, parameter)
    if act is by_step:  # which says: the same constrain once more, with init='haar'
        manifold = composition.parts(model[1].weight.shape)[part][0]
        constrain(model, f"1.weight.{part}", manifold, Riemannian(), init="haar")
        RiemannianAdam(model).step()


@pytest.mark.parametrize(("composition", "part"), [each for each in PARTS if each[1] != "gain"])
def test_an_engine_calls_a_part_by_its_dotted_name(composition: Any, part: str) -> None:
    """And by its attribute where it says what to assign."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(model, "1.weight", composition, init="haar")
    parts = model[1].parametrizations.weight[0]
    who, shape = rf"1\.weight\.{part} of Parts", getattr(parts, part).shape

    with pytest.raises(ValueError, match=rf"^{who}.*module\.{part} = "):
        setattr(parts, part, torch.zeros(shape))
    nn.init.ones_(getattr(parts, part))
    with pytest.raises(ValueError, match=rf"^{who}.*module\.{part} = "):
        getattr(parts, part)
    setattr(parts, part, Stiefel().random(*shape))
    parts.parametrizations[part].original.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=rf"^{who}.*module\.{part} = "):
        getattr(parts, part)
    setattr(parts, part, Stiefel().random(*shape))
    parts.parametrizations[part][0].base_point.data.fill_(2)
    with pytest.raises(ValueError, match=rf"^{who}.*module\.{part} = "):
        getattr(parts, part)
