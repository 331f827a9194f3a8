"""Two processes that train one model, and one process on the batch of both."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .common import LABELS, X, build
from .entrants import ENTRANTS, Entrant

STEPS = 3


def run(entrant: Entrant) -> list[Tensor]:
    """The weights that both processes end with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        number = [each.name for each in ENTRANTS].index(entrant.name)
        torch.multiprocessing.spawn(_work, (port, number, folder), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def joined(entrant: Entrant) -> Tensor:
    """The weight that one process ends with."""
    net = build(entrant, dtype=torch.float64)
    return _train(entrant, net, net, slice(None))


def _work(rank: int, port: int, number: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    entrant = ENTRANTS[number]
    net = build(entrant, dtype=torch.float64)
    weight = _train(entrant, DistributedDataParallel(net), net, slice(6 * rank, 6 * rank + 6))
    torch.save(weight, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _train(entrant: Entrant, wrapped: nn.Module, net: nn.Module, part: slice) -> Tensor:
    optimizer = entrant.adam(net)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(X.double()[part]), LABELS[part]).backward()
        optimizer.step()
    first: nn.Module = net.first  # type: ignore[assignment]
    weight: Tensor = first.weight  # type: ignore[assignment]
    return weight.detach().as_subclass(Tensor).clone()
