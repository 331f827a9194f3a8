"""Checkpoints: plain ones out, plain and constrained ones in, and nothing off the manifold."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import (
    BlockSpec,
    Riemannian,
    Trivialization,
    constrain,
    export_state_dict,
    load_checked,
    report,
    unconstrain,
)
from constraints.method import Method
from manifolds import SpecialOrthogonal, Stiefel

METHODS = [Trivialization(), Riemannian()]
both = pytest.mark.parametrize("method", METHODS, ids=repr)
X = torch.arange(30.0).reshape(3, 2, 5).sin()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.rnn = nn.LSTM(5, 4, num_layers=2)
        self.out = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.norm(x.flatten(0, 1)).view_as(x))[0])  # type: ignore[no-any-return]


def plain(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def constrained(method: Method, seed: int = 0) -> Any:
    net = plain(seed)
    constrain(net, "rnn.weight_hh*", Stiefel**4, method)
    constrain(net, "out.0.weight", SpecialOrthogonal, method, init="haar")
    constrain(net, "out.1.weight", Stiefel, method, layout=BlockSpec(rows=2, axis=1))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("original"):
                p.copy_(0.3 * torch.randn_like(p))
    return net


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# Out --------------------------------------------------------------------------------------------------------------


@both
def test_a_plain_module_loads_the_export(method: Method) -> None:
    net = constrained(method)
    state = export_state_dict(net)
    assert list(state) == list(plain().state_dict())
    assert not any(value.requires_grad for value in state.values())
    other = plain(seed=1)
    other.load_state_dict(through_a_file(state), strict=True)
    assert torch.equal(other(X), net(X))


def test_the_export_of_a_plain_module_is_its_state_dict() -> None:
    net = plain()
    assert same(dict(net.state_dict()), export_state_dict(net))


def test_the_export_of_a_bare_module() -> None:
    gru = constrain(nn.GRU(5, 4), "weight_hh_l0", Stiefel**3)
    assert list(export_state_dict(gru)) == list(nn.GRU(5, 4).state_dict())
    assert torch.equal(export_state_dict(gru)["weight_hh_l0"], gru.weight_hh_l0)


# In ---------------------------------------------------------------------------------------------------------------


@both
def test_a_constrained_module_comes_back_bit_for_bit(method: Method) -> None:
    net = constrained(method)
    other = constrained(method, seed=1)
    other.load_state_dict(through_a_file(net.state_dict()), strict=True)
    assert same(bits(other), bits(net))
    assert torch.equal(other(X), net(X))


@both
@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads(method: Method, assign: bool) -> None:
    net = constrained(method)
    state = export_state_dict(net)
    other = constrained(method, seed=1)
    other.load_state_dict(through_a_file(state), strict=True, assign=assign)
    torch.testing.assert_close(other(X), net(X), rtol=1e-5, atol=1e-6)
    assert all(row.ok for row in report(other))
    assert len(report(other)) == len(report(net))
    unconstrain(other, "*")
    torch.testing.assert_close(other(X), net(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("writer", "reader"), [METHODS, METHODS[::-1]])
def test_a_checkpoint_moves_between_engines(writer: Method, reader: Method) -> None:
    net = constrained(writer)
    other = constrained(reader, seed=1)
    other.load_state_dict(through_a_file(net.state_dict()), strict=True)
    torch.testing.assert_close(other(X), net(X), rtol=1e-5, atol=1e-6)


@both
def test_a_rounded_checkpoint_is_rounded_back(method: Method) -> None:
    net = constrained(method)
    state = {name: value.half().float() for name, value in export_state_dict(net).items()}
    other = constrained(method, seed=1)
    other.load_state_dict(state)
    assert max(max(row.residuals) for row in report(other)) < 1e-5
    torch.testing.assert_close(other.out[0].weight, net.out[0].weight, rtol=0, atol=2e-3)


@both
@pytest.mark.parametrize("level", ["a part", "below a wrapper"])
def test_any_level_loads(method: Method, level: str) -> None:
    net, other = constrained(method), constrained(method, seed=1)
    state = export_state_dict(net)
    if level == "a part":
        other.rnn.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("rnn.")})
    else:
        nn.Sequential(other).load_state_dict({f"0.{name}": value for name, value in state.items()})
    torch.testing.assert_close(other.rnn.weight_hh_l1, net.rnn.weight_hh_l1, rtol=0, atol=1e-6)


@both
def test_a_copy_loads_into_itself(method: Method) -> None:
    net = constrained(method)
    other = copy.deepcopy(constrained(method, seed=1))
    before = bits(net)
    other.load_state_dict(export_state_dict(net))
    torch.testing.assert_close(other(X), net(X), rtol=1e-5, atol=1e-6)
    assert same(bits(net), before)


@both
def test_what_is_missing_may_be_missing(method: Method) -> None:
    net = constrained(method)
    weight = net.out[0].weight.detach().clone()
    state = {name: value for name, value in export_state_dict(constrained(method, 1)).items() if "rnn" in name}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == []
    assert any(name.startswith("out.0") for name in missing)
    assert torch.equal(net.out[0].weight, weight)


# Not in -----------------------------------------------------------------------------------------------------------

BAD = {
    "off the manifold": (lambda w: 2 * w, r"out\.0\.weight of the checkpoint is not on SpecialOrthogonal.*\(4, 4\)"),
    "a reflection": (lambda w: torch.cat([-w[:1], w[1:]]), r"1 of 1 matrices have determinant -1"),
    "NaN": (lambda w: w * float("nan"), r"out\.0\.weight of the checkpoint has NaN"),
    "another shape": (lambda w: w[:3], r"out\.0\.weight of the checkpoint needs shape \(4, 4\); got \(3, 4\)"),
    "integers": (lambda w: w.round().long(), r"out\.0\.weight of the checkpoint has dtype.*int64"),
    "no tensor": (lambda w: w.tolist(), r"out\.0\.weight of the checkpoint is a tensor; got a list of 4"),
}


@both
@pytest.mark.parametrize("case", BAD)
def test_a_bad_plain_checkpoint_changes_nothing(case: str, method: Method) -> None:
    spoil, words = BAD[case]
    net = constrained(method)
    before = bits(net)
    state: dict[str, Any] = export_state_dict(constrained(method, seed=1))
    state["out.0.weight"] = spoil(state["out.0.weight"])
    with pytest.raises(ValueError, match=words):
        net.load_state_dict(state)
    assert same(bits(net), before)


@pytest.mark.parametrize(
    ("key", "spoil", "words"),
    [
        ("0.base_point", lambda w: 2 * w, "not on SpecialOrthogonal"),
        ("0.base_point", lambda w: w * float("nan"), "NaN"),
        ("0.base_point", None, "without"),
        ("original", None, "without"),
        ("original", lambda w: w * float("inf"), "infinite"),
        ("original", lambda w: w[:3], r"needs shape \(4, 4\); got \(3, 4\)"),
    ],
)
def test_a_bad_constrained_checkpoint_changes_nothing(key: str, spoil: Any, words: str) -> None:
    net = constrained(Trivialization())
    before = bits(net)
    state = dict(constrained(Trivialization(), seed=1).state_dict())
    full = f"out.0.parametrizations.weight.{key}"
    if spoil is None:
        del state[full]
    else:
        state[full] = spoil(state[full])
    with pytest.raises(ValueError, match=words):
        net.load_state_dict(state, strict=False)
    assert same(bits(net), before)


def by_torch(shape: tuple[int, int]) -> nn.Module:
    return nn.utils.parametrizations.orthogonal(nn.Linear(*shape))


def by_torch_without_base(shape: tuple[int, int]) -> nn.Module:
    return nn.utils.parametrizations.orthogonal(nn.Linear(*shape), use_trivialization=False)


def by_geotorch(shape: tuple[int, int]) -> nn.Module:
    linear = nn.Linear(*shape)
    pytest.importorskip("geotorch").orthogonal(linear, "weight")
    return linear


def by_weight_norm(shape: tuple[int, int]) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(*shape))


@both
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("through", [dict, lambda state: state])
@pytest.mark.parametrize("shape", [(8, 8), (4, 8), (8, 4)])
@pytest.mark.parametrize("other", [by_torch, by_torch_without_base, by_geotorch, by_weight_norm])
def test_the_checkpoint_of_another_parametrization_is_refused(
    other: Any, shape: tuple[int, int], through: Any, strict: bool, method: Method
) -> None:
    """Its keys mean something else, with metadata or, as from safetensors, without."""
    theirs = other(shape)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(2):
        theirs(torch.randn(4, shape[0])).square().mean().backward()
        optimizer.step()
    mine = constrain(nn.Linear(*shape), "weight", Stiefel, method)
    before = bits(mine)
    with pytest.raises(ValueError, match=r"weight\.original.*remove_parametrizations\(module, 'weight'\)"):
        mine.load_state_dict(through(theirs.state_dict()), strict=strict)
    assert same(bits(mine), before)


def test_no_key_of_a_trivialization_means_something_else_to_torch() -> None:
    """A constrained checkpoint does not load silently into a model under torch's orthogonal either."""
    mine = constrain(nn.Linear(8, 8), "weight", Stiefel)
    with pytest.raises(RuntimeError, match=r"0\.base"):
        nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)).load_state_dict(mine.state_dict())


def test_the_way_out_for_another_parametrization() -> None:
    theirs = by_torch((8, 4))
    weight = theirs.weight.detach().clone()
    nn.utils.parametrize.remove_parametrizations(theirs, "weight")
    mine = constrain(nn.Linear(8, 4), "weight", Stiefel)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine.weight, weight, rtol=0, atol=1e-5)


TORN: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing left": (dict.clear, RuntimeError, "Missing key"),
    "the end is missing": (lambda state: [state.popitem() for _ in range(3)], RuntimeError, "Missing key"),
    "a free tensor of another shape": (
        lambda state: state.update({"norm.weight": torch.zeros(3)}),
        RuntimeError,
        "size mismatch for norm.weight",
    ),
    "a key too many": (lambda state: state.update(more=torch.zeros(3)), RuntimeError, "Unexpected key"),
    "a constrained tensor is missing": (
        lambda state: [state.pop(name) for name in list(state) if name.startswith("out.0")],
        RuntimeError,
        r"Missing key.*out\.0",
    ),
    "off its manifold": (
        lambda state: state.update({n: 2 * v for n, v in state.items() if n.startswith("out.1")}),
        ValueError,
        "not on .*Stiefel",
    ),
}


@both
@pytest.mark.parametrize("plain_keys", [True, False])
@pytest.mark.parametrize("case", TORN)
def test_a_checked_load_fails_as_a_whole(case: str, plain_keys: bool, method: Method) -> None:
    spoil, kind, words = TORN[case]
    net, good = constrained(method), constrained(method, seed=1)
    before = bits(net)
    state: dict[str, Any] = export_state_dict(good) if plain_keys else dict(good.state_dict())
    spoil(state)
    with pytest.raises(kind, match=words):
        load_checked(net, state)
    assert same(bits(net), before)


@both
def test_a_checked_load_loads(method: Method) -> None:
    net, good = constrained(method), constrained(method, seed=1)
    assert not any(load_checked(net, good.state_dict()))
    assert same(bits(net), bits(good))
    missing, unexpected = load_checked(net, {"more": torch.zeros(3)}, strict=False)
    assert unexpected == ["more"]
    assert "norm.weight" in missing
    assert same(bits(net), bits(good))


def test_a_free_module_is_not_watched_any_more() -> None:
    net = unconstrain(constrained(Trivialization()), "*")
    twice = {name: 2 * value for name, value in net.state_dict().items()}
    net.load_state_dict(twice)
    assert same(bits(net), twice)
