"""Checkpoints that are broken: a clear error, or a stated projection, and after an error every tensor as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Trivialization, export_state_dict, load_checked
from constraints.held import held
from constraints.method import Method

from .subjects import Subject, batch, bits, each, engine, residual, same, weights

State = dict[str, Tensor]

loaders = pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_checked], ids=["load_state_dict", "checked"])
own = pytest.mark.parametrize("plain", [False, True], ids=["own", "plain"])


def state_of(net: Any, plain: bool) -> State:
    return {k: v.clone() for k, v in (export_state_dict(net) if plain else net.state_dict()).items()}


def key_of(state: State, name: str) -> str:
    """The key under which the checkpoint has the point of this weight: the weight itself, or its base."""
    owner, _, attribute = name.rpartition(".")
    return name if name in state else f"{owner}.parametrizations.{attribute}.0.base_point"


def missing(state: State, key: str) -> None:
    del state[key]


def longer(state: State, key: str) -> None:
    state[key] = torch.cat([state[key], state[key]])


def flat(state: State, key: str) -> None:
    state[key] = state[key].flatten()


def transposed(state: State, key: str) -> None:
    state[key] = state[key].transpose(0, 1).contiguous()[:, :2]


def empty(state: State, key: str) -> None:
    state[key] = state[key][:0]


def off(state: State, key: str) -> None:
    state[key] = state[key] + 0.3


def zero(state: State, key: str) -> None:
    state[key].zero_()


def one_nan(state: State, key: str) -> None:
    state[key].view(-1)[-1] = torch.nan


def infinite(state: State, key: str) -> None:
    state[key].view(-1)[0] = -torch.inf


def integers(state: State, key: str) -> None:
    state[key] = state[key].long()


def complex_(state: State, key: str) -> None:
    state[key] = state[key].to(torch.complex64)


def no_tensor(state: State, key: str) -> None:
    state[key] = state[key].tolist()  # type: ignore[assignment]


BROKEN = [
    longer,
    flat,
    transposed,
    empty,
    off,
    zero,
    one_nan,
    infinite,
    integers,
    complex_,
    no_tensor,
]


@each
@engine
@own
@loaders
@pytest.mark.parametrize("harm", BROKEN)
def test_a_broken_constrained_weight_is_an_error_that_changes_nothing(
    subject: Subject, method: Method, plain: bool, load: Any, harm: Callable[[State, str], None]
) -> None:
    """The last constrained weight is broken, all before it are fine: none is loaded, nor is what is free."""
    net, other = subject.constrained(method), subject.constrained(method, seed=5)
    name = list(weights(net))[-1]
    state = state_of(other, plain)
    key = key_of(state, name)
    harm(state, key)
    before, output = bits(net), net(batch()).detach()
    with pytest.raises((ValueError, RuntimeError), match=re.escape(key)):
        load(net, state)
    assert same(bits(net), before)
    assert torch.equal(net(batch()), output)


def without_a_weight(state: State, name: str) -> None:
    del state[key_of(state, name)]


def without_half(state: State, name: str) -> None:
    for key in list(state)[::2]:
        del state[key]


def without_a_free_tensor(state: State, name: str) -> None:
    del state["head.weight"]


def with_a_longer_free_tensor(state: State, name: str) -> None:
    longer(state, "head.bias")


def with_another_key(state: State, name: str) -> None:
    state["nobody"] = torch.ones(1)


@each
@engine
@own
@pytest.mark.parametrize(
    "harm", [without_a_weight, without_half, without_a_free_tensor, with_a_longer_free_tensor, with_another_key]
)
def test_a_checkpoint_that_does_not_fit_loads_as_a_whole_or_not_at_all(
    subject: Subject, method: Method, plain: bool, harm: Callable[[State, str], None]
) -> None:
    """`load_checked` changes nothing. load_state_dict loads what fits, as in torch, and nothing off the manifold."""
    net, other = subject.constrained(method), subject.constrained(method, seed=5)
    state = state_of(other, plain)
    harm(state, list(weights(net))[-1])
    before, old, new = bits(net), weights(net), weights(other)
    with pytest.raises((RuntimeError, ValueError), match=r"[Mm]issing|without|size mismatch|Unexpected"):
        load_checked(net, state)
    assert same(bits(net), before)
    with pytest.raises((RuntimeError, ValueError), match=r"[Mm]issing|without|size mismatch|Unexpected"):
        net.load_state_dict(state)
    assert residual(net) < 1e-5
    for name, weight in weights(net).items():
        assert min((weight - old[name]).abs().max(), (weight - new[name]).abs().max()) < 1e-6


@each
@loaders
@pytest.mark.parametrize("harm", [one_nan, longer, missing, infinite])
def test_broken_coordinates(subject: Subject, load: Any, harm: Callable[[State, str], None]) -> None:
    net, other = subject.constrained(Trivialization()), subject.constrained(Trivialization(), seed=5)
    state = state_of(other, plain=False)
    key = key_of(state, list(weights(net))[-1]).replace("0.base_point", "original")
    harm(state, key)
    before = bits(net)
    with pytest.raises((ValueError, RuntimeError), match=r"original"):
        load(net, state)
    assert same(bits(net), before)


@each
@engine
@own
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_an_error_of_torch_and_the_model_is_as_it_was(
    subject: Subject, method: Method, plain: bool, share: float, tmp_path: Path
) -> None:
    net = subject.constrained(method)
    before, file = bits(net), tmp_path / "model.pt"
    torch.save(state_of(net, plain), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((RuntimeError, EOFError, OSError)):
        net.load_state_dict(torch.load(file, weights_only=True))
    assert same(bits(net), before)


@each
@engine
@own
def test_a_checkpoint_in_half_precision_is_projected(subject: Subject, method: Method, plain: bool) -> None:
    """Within rounding of its dtype a value is a point that was rounded: the nearest point is taken, as stated."""
    net, other = subject.constrained(method), subject.constrained(method, seed=5)
    state = {key: value.bfloat16() for key, value in state_of(other, plain).items()}
    net.load_state_dict(state)
    assert residual(net) < 1e-5
    for name, weight in weights(other).items():
        assert 0 < (weights(net)[name] - weight).abs().max() < 0.05


@each
@engine
def test_a_small_error_is_projected_and_a_large_one_is_not(subject: Subject, method: Method) -> None:
    net, other = subject.constrained(method), subject.constrained(method, seed=5)
    state = state_of(other, plain=True)
    name = next(iter(weights(net)))
    state[name] *= 1 + 1e-4
    net.load_state_dict(state)
    assert residual(net) < 1e-5
    torch.testing.assert_close(weights(net)[name], weights(other)[name], rtol=0, atol=1e-5)
    state[name] *= 1.1
    before = bits(net)
    with pytest.raises(ValueError, match=r"is not on .*nearest\("):
        net.load_state_dict(state)
    assert same(bits(net), before)


@each
@engine
def test_a_checkpoint_off_the_manifold_is_taken_once_it_is_projected(subject: Subject, method: Method) -> None:
    """The way out that the error names."""
    net, plain = subject.constrained(method), subject.plain(5)
    with pytest.raises(ValueError, match=r"nearest\("):
        net.load_state_dict(plain.state_dict())
    state = plain.state_dict()
    for e in held(net):
        state[e.name] = e.manifold.nearest(state[e.name])
    net.load_state_dict(state)
    assert residual(net) < 1e-5
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, state[name], rtol=0, atol=1e-5)
