"""Recurrent layers under `fully_shard` where torch moves their weights together for cuDNN, which a CPU plays here."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, export_state_dict
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import Orthogonal

KINDS: dict[str, Any] = {"GRU": (nn.GRU, 3), "LSTM": (nn.LSTM, 4), "RNN": (nn.RNN, 1)}
METHODS: dict[str, Method | None] = {"Trivialization": Trivialization(), "Riemannian": Riemannian(), "none": None}
SHARDED = ("as part of the model", "for itself")
CASES = [case for case in itertools.product(KINDS, METHODS, SHARDED) if case[0] == "GRU" or case[2] == SHARDED[0]]


def together(module: nn.RNNBase) -> None:
    """What `flatten_parameters` does on cuDNN: all weights in one piece of new memory."""
    weights: Any = module._flat_weights
    if all(type(w) in (Tensor, nn.Parameter) for w in weights):
        with torch.no_grad():
            memory = torch.cat([w.detach().flatten() for w in weights])
            for w, piece in zip(weights, memory.split([w.numel() for w in weights]), strict=True):
                w.data = piece.view(w.shape)


class Net(nn.Module):
    """A layer to hold, and a free one of its kind, which only our optimizers see."""

    def __init__(self, kind: str, more: bool) -> None:
        super().__init__()
        self.core, self.out = KINDS[kind][0](3, 4), nn.Linear(4, 1)
        self.free = nn.GRU(4, 4) if more else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(x)[0]
        return self.out(y if self.free is None else self.free(y)[0])  # type: ignore[no-any-return]


def _net(kind: str, method: Method | None) -> Any:
    torch.manual_seed(0)
    net = Net(kind, isinstance(method, Riemannian)).double()
    return net if method is None else constrain(net, "core.weight_hh_l0", Orthogonal ** KINDS[kind][1], method)


def _adam(net: nn.Module, method: Method | None) -> torch.optim.Optimizer:
    return RiemannianAdam(net, 1e-2) if isinstance(method, Riemannian) else torch.optim.Adam(net.parameters(), 1e-2)


def _train(net: Any, optimizer: torch.optim.Optimizer, part: slice) -> dict[str, Tensor]:
    for step in range(4):
        x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x[:, part]) - 1).square().mean().backward()
        optimizer.step()
    return export_state_dict(net)


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (2,)), {}
    with mock.patch.object(nn.RNNBase, "flatten_parameters", together):
        for case in CASES:
            kind, method, sharded = case
            net = _net(kind, METHODS[method])
            if sharded == "for itself":
                fully_shard(net.core, mesh=mesh)
            fully_shard(net, mesh=mesh)
            trained = _train(net, _adam(net, METHODS[method]), slice(2 * rank, 2 * rank + 2))
            found[case] = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in trained.items()}
    return found


def _apart(case: tuple[str, str, str], ranks: list[Any]) -> float:
    """How far the processes are from one that has the whole model, at most."""
    kind, method, _ = case
    net = _net(kind, METHODS[method])
    alone = _train(net, _adam(net, METHODS[method]), slice(None))
    return max(float((rank[case][key] - value).abs().max()) for rank in ranks for key, value in alone.items())


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "none"], ids=" ".join)
def test_a_held_layer_trains_as_in_one_process(case: tuple[str, str, str], ranks: list[Any]) -> None:
    assert _apart(case, ranks) <= 1e-11  # 1e4 eps, of sums in another order in steps of Adam


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "none"], ids=" ".join)
def test_a_plain_layer_of_torch_does_not(case: tuple[str, str, str], ranks: list[Any]) -> None:
    """Should this fail, torch has mended it, and `constraints.recurrent` can go."""
    assert _apart(case, ranks) > 1e-3


def test_layers_that_are_whole_are_put_together_by_torch() -> None:
    """In each pass of a trivialized one, whose weight is another tensor; of a Riemannian one, none in a pass."""
    with mock.patch.object(nn.RNNBase, "flatten_parameters", autospec=True, side_effect=together) as moved:
        for method, passes in (("Trivialization", 2), ("Riemannian", 0)):
            net = _net("GRU", METHODS[method]).core
            moved.reset_mock()
            for _ in range(2):
                net(torch.ones(5, 4, 3, dtype=torch.float64))
            assert moved.call_count == passes


def test_a_captured_pass_moves_nothing() -> None:
    """A replay would read the weights where they were before, whatever was learnt since."""
    net = _net("GRU", Trivialization()).core
    x = torch.ones(5, 4, 3, dtype=torch.float64)
    expected, places = net(x)[0], [p.data_ptr() for p in net.parameters()]
    with (
        mock.patch.object(nn.RNNBase, "flatten_parameters", together),
        mock.patch("constraints.recurrent._is_captured", return_value=True),
    ):
        assert torch.equal(net(x)[0], expected)
    assert [p.data_ptr() for p in net.parameters()] == places
