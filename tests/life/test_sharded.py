"""What the refusal of a sharded weight tells a reader to do is right on two processes, and its warning is true."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from constraints import check_agreement, constrain, unconstrain
from constraints.method import Method
from manifolds import Stiefel

from .subjects import ENGINES, adam
from .test_fully_shard import refusal

STEPS, HELD = 3, "0.weight"


def _net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()


def _train(model: nn.Module, optimizer: Any, parts: slice, averaged: Collection[nn.Parameter] = ()) -> None:
    """Steps on this part of a batch of 8; the gradients of what is averaged are averaged by hand."""
    for step in range(STEPS):
        x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x[parts]).square().mean().backward()
        for p in averaged:
            if p.requires_grad:
                distributed.all_reduce(p.grad)
                p.grad /= distributed.get_world_size()  # type: ignore[operator]
        optimizer.step()


def _alone(net: Any) -> torch.Tensor:
    """The weight after the same steps in one process, on the whole batch."""
    _train(net, adam(net), slice(None))
    return net[0].weight.detach()  # type: ignore[no-any-return]


def _work(rank: int) -> Any:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    mesh, mine, found = init_device_mesh("cpu", (2,)), slice(4 * rank, 4 * rank + 4), dict[Any, Any]()
    for method in ENGINES:
        kind = type(method).__name__
        net = constrain(_net(seed=rank), HELD, Stiefel, method)
        _train(DistributedDataParallel(net), adam(net), mine)
        found[kind, "wrapped"] = net[0].weight.detach()
        net = unconstrain(constrain(_net(), HELD, Stiefel, method), HELD)
        fully_shard(net, mesh=mesh)
        _train(net, adam(net), mine)
        found[kind, "let go"] = net[0].weight.full_tensor().detach()
        for averages in (True, False):
            net = constrain(_net(), HELD, Stiefel, method)
            whole = list(net[0].parameters())
            fully_shard(net, mesh=mesh, ignored_params=set(whole))
            _train(net, adam(net), mine, whole if averages else ())
            way = "averaged by hand" if averages else "ignored"
            found[kind, way] = net[0].weight.detach()
            found[kind, way, "agreement"] = refusal(partial(check_agreement, net))
    return found


@pytest.mark.parametrize("method", ENGINES, ids=repr)
@pytest.mark.parametrize("way", ["wrapped", "averaged by hand"])
def test_the_ways_out_train_as_one_process_does(way: str, method: Method, ranks: list[Any]) -> None:
    alone = _alone(constrain(_net(), HELD, Stiefel, method))
    for rank in ranks:
        # gradients of another order of sums, which Adam divides by their own size
        torch.testing.assert_close(rank[type(method).__name__, way], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ENGINES, ids=repr)
def test_a_weight_that_is_let_go_is_sharded_as_any_other(method: Method, ranks: list[Any]) -> None:
    alone = _alone(unconstrain(constrain(_net(), HELD, Stiefel, method), HELD))
    for rank in ranks:
        torch.testing.assert_close(rank[type(method).__name__, "let go"], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ENGINES, ids=repr)
def test_processes_drift_apart_where_nobody_averages(method: Method, ranks: list[Any]) -> None:
    """Why the refusal warns of ignored_params: should this fail, torch averages them, and the warning can go. It is
    seen by `check_agreement`, on all processes."""
    first, second = (rank[type(method).__name__, "ignored"] for rank in ranks)
    assert (first - second).abs().max() > 1e-4
    for rank in ranks:
        assert (
            "0.weight of FSDPSequential differ between processes" in rank[type(method).__name__, "ignored", "agreement"]
        )
        assert rank[type(method).__name__, "averaged by hand", "agreement"] == ""
