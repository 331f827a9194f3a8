"""A model is saved and loaded: constrained to constrained, plain to constrained, constrained to plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from constraints import export_state_dict, unconstrain
from constraints.method import Method

from .subjects import (
    ENGINES,
    Subject,
    adam,
    batch,
    bits,
    each,
    engine,
    residual,
    same,
    train,
    weights,
)

reader = pytest.mark.parametrize("reader", ENGINES, ids=lambda method: f"into{type(method).__name__}")


def through_a_file(state: dict[str, Tensor], folder: Path, **options: Any) -> dict[str, Tensor]:
    torch.save(state, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=True, **options)  # type: ignore[no-any-return]


@each
@engine
@pytest.mark.parametrize("options", [{}, {"assign": True}], ids=["copied", "assigned"])
def test_a_state_dict_comes_back_bit_for_bit(
    subject: Subject, method: Method, options: dict[str, bool], tmp_path: Path
) -> None:
    net, x = subject.constrained(method), batch()
    other = subject.constrained(method, seed=5)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(through_a_file(net.state_dict(), tmp_path), strict=True, **options)
    assert same(bits(other), bits(net))
    assert torch.equal(other(x), net(x))
    train(other, adam(other), x)
    assert residual(other) < 1e-5


@each
@engine
def test_a_mapped_file_loads(subject: Subject, method: Method, tmp_path: Path) -> None:
    net, x = subject.constrained(method), batch()
    other = subject.constrained(method, seed=5)
    other.load_state_dict(through_a_file(net.state_dict(), tmp_path, mmap=True))
    assert torch.equal(other(x), net(x))


@each
@engine
def test_a_constrained_model_goes_into_a_plain_one(subject: Subject, method: Method, tmp_path: Path) -> None:
    net, plain, x = subject.constrained(method), subject.plain(5), batch()
    exported = through_a_file(export_state_dict(net), tmp_path)
    assert list(exported) == list(plain.state_dict())
    plain.load_state_dict(exported, strict=True)
    assert torch.equal(plain(x), net(x))


@each
@engine
def test_a_plain_checkpoint_on_the_manifold_goes_into_a_constrained_model(
    subject: Subject, method: Method, tmp_path: Path
) -> None:
    plain, x = unconstrain(subject.constrained(method), "*"), batch()
    net = subject.constrained(method, seed=5)
    net.load_state_dict(through_a_file(plain.state_dict(), tmp_path), strict=True)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-6)
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, plain.get_parameter(name).detach(), rtol=0, atol=1e-6)


@each
@engine
@reader
def test_a_checkpoint_goes_from_engine_to_engine(subject: Subject, method: Method, reader: Method) -> None:
    net, other, x = subject.constrained(method), subject.constrained(reader, seed=5), batch()
    other.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(other(x), net(x), rtol=1e-5, atol=1e-6)
    train(other, adam(other), x)
    assert residual(other) < 1e-5


@each
@engine
@reader
def test_a_model_goes_from_engine_to_engine(subject: Subject, method: Method, reader: Method) -> None:
    """unconstrain keeps the weight bit for bit, and a point is kept when it is constrained again."""
    net, x = subject.constrained(method), batch()
    before, output = weights(net), net(x).detach()
    unconstrain(net, "*")
    assert torch.equal(net(x), output)
    subject.constrain(net, reader)
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(net(x), output, rtol=1e-5, atol=1e-6)
    first = train(net, adam(net), x)
    assert train(net, adam(net), x) < first
    assert residual(net) < 1e-5


@each
@engine
def test_what_strict_loading_reports(subject: Subject, method: Method) -> None:
    net = subject.constrained(method)
    state = net.state_dict()
    missing = {key: value for key, value in state.items() if key != "head.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        net.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nobody"):
        net.load_state_dict({**state, "nobody": torch.ones(1)})
    result = net.load_state_dict(missing, strict=False)
    assert result.missing_keys == ["head.bias"]
