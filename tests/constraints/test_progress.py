"""A long `constrain` shows on a terminal where it is, and writes nothing elsewhere."""

from __future__ import annotations

import io

import pytest
from torch import nn

from constraints import constrain, progress
from manifolds import Stiefel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_large_tensors_are_named_on_a_terminal_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "LARGE", 64)
    constrain(nn.Sequential(nn.Linear(4, 4), nn.Linear(8, 8)), "*.weight", Stiefel)
    lines = stream.getvalue().split("\r")
    assert [line for line in lines if line.strip()] == (["constrain: 2 of 2, 1.weight"] if is_terminal else [])
    if is_terminal:
        assert lines[-2:] == [" " * len("constrain: 2 of 2, 1.weight"), ""]


def test_many_are_named_once_it_takes_long_and_the_line_is_wiped_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    constrain(nn.Linear(4, 4), "weight", Stiefel)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert stream.getvalue() == ""
    net = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(net[0].weight)
    with pytest.raises(ValueError, match="deficient rank"):
        constrain(net, "0.weight", Stiefel)
    assert "constrain: 1 of 1, 0.weight" in stream.getvalue()
    assert stream.getvalue().endswith(" \r")
