"""Many processes and many replicas: the weights of one process on the joined batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from constraints import Riemannian, constrain
from constraints.coordinates import coordinates_of
from constraints.method import Method
from constraints.trivialization import trivialized
from manifolds import Stiefel

from .processes import Note, two_processes
from .subjects import ENGINES, SUBJECTS, Subject, adam, batch, each, engine, objective, residual, sgd, train, weights

STEPS = 4


def _work(rank: int) -> Any:
    found = {}
    for subject in SUBJECTS:
        for method in ENGINES:
            for name, optimizer_of in (("adam", adam), ("sgd", sgd)):
                # of another seed on each rank: the wrapper sends the weights of the first
                net = subject.constrained(method, seed=rank, dtype=torch.float64)
                wrapped = DistributedDataParallel(net)
                optimizer = optimizer_of(net, **({"momentum": 0.9} if name == "sgd" else {}))
                for step in range(STEPS):
                    x = batch(8, seed=step).double()
                    train(wrapped, optimizer, x[4 * rank : 4 * rank + 4])
                found[subject.name, type(method).__name__, name] = weights(net)
    found["far"] = _go_far(DistributedDataParallel, rank)
    return found


def _go_far(wrap: Callable[[torch.nn.Module], torch.nn.Module], rank: int | None = None) -> dict[str, torch.Tensor]:
    """Weight, base and first moment after steps so long that the base moves, of one rank or of the joined batch."""
    torch.manual_seed(0)
    goal, net = Stiefel().random(8, 8, dtype=torch.float64), torch.nn.Linear(8, 8, bias=False, dtype=torch.float64)
    constrain(net, "weight", Stiefel, init="identity")
    coordinates, wrapped = dict(coordinates_of(net))["weight"], wrap(net)
    optimizer, x = torch.optim.Adam(net.parameters(), lr=0.1), torch.randn(8, 8, dtype=torch.float64)
    x = x if rank is None else x[4 * rank : 4 * rank + 4]
    for _ in range(12):
        optimizer.zero_grad()
        (wrapped(x) - x @ goal.T).square().mean().backward()
        optimizer.step()
    base = dict(trivialized(net))["weight"].base_point.detach().clone()
    moment = optimizer.state[coordinates.original]["exp_avg"]
    return {"weight": net.weight.detach().clone(), "base": base, "moment": moment}


def test_two_processes_train_as_one_on_the_joined_batch(tmp_path: Path, record_property: Note) -> None:
    ranks = two_processes(_work, tmp_path, record_property)
    for subject in SUBJECTS:
        for method in ENGINES:
            for name, optimizer_of in (("adam", adam), ("sgd", sgd)):
                net = subject.constrained(method, dtype=torch.float64)
                start = weights(net)
                optimizer = optimizer_of(net, **({"momentum": 0.9} if name == "sgd" else {}))
                for step in range(STEPS):
                    train(net, optimizer, batch(8, seed=step).double())
                one = weights(net)
                for rank in ranks:
                    for key, weight in rank[subject.name, type(method).__name__, name].items():
                        assert (one[key] - start[key]).abs().max() > 1e-6  # far more than rounding, below
                        torch.testing.assert_close(weight, one[key], rtol=0, atol=1e-9)
    far = _go_far(lambda net: net)
    assert not torch.equal(far["base"], torch.eye(8, dtype=torch.float64))
    for key, value in far.items():
        assert torch.equal(ranks[0]["far"][key], ranks[1]["far"][key])
        torch.testing.assert_close(ranks[0]["far"][key], value, rtol=0, atol=1e-9)


@each
@engine
def test_replicas_compute_what_the_model_computes(subject: Subject, method: Method) -> None:
    """What DataParallel does on each device, without devices: shallow replicas with tensors of their own graph."""
    net, x = subject.constrained(method), batch()
    output = net(x)
    replicas = [_replica(net) for _ in range(2)]
    parts = x.split(3)
    outputs = torch.cat([replica(part) for replica, part in zip(replicas, parts, strict=True)])
    torch.testing.assert_close(outputs, output, rtol=1e-5, atol=1e-6)
    outputs.square().sum().backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    gathered = [p.grad.clone() for p in trained]
    net.zero_grad()
    output.square().sum().backward()
    for g, p in zip(gathered, trained, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-6)
    memos = [held.memo for root in (net, *replicas) for m in root.modules() for _, held in trivialized(m)]
    assert len(set(map(id, memos))) == len(memos)


def _replica(net: torch.nn.Module) -> torch.nn.Module:
    """torch.nn.parallel.replicate for one device: the same steps, with a differentiable copy of each tensor."""
    modules = list(net.modules())
    copies = {id(module): module._replicate_for_data_parallel() for module in modules}  # type: ignore[no-untyped-call]
    for module in modules:
        replica = copies[id(module)]
        replica._former_parameters = {}
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, copies[id(child)])
        for name, p in module._parameters.items():
            if p is not None:
                setattr(replica, name, p * 1)
                replica._former_parameters[name] = p
        for name, b in module._buffers.items():
            replica._buffers[name] = None if b is None else b.clone()
    return copies[id(net)]


@each
@engine
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="torch.nn.parallel.replicate needs a GPU")
def test_data_parallel(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method).cuda(), batch(8).cuda()
    twin = copy.deepcopy(net)
    wrapped = torch.nn.DataParallel(net, [0, 0] if torch.cuda.device_count() < 2 else [0, 1])
    train(wrapped, adam(net), x)
    train(twin, adam(twin), x)
    for name, weight in weights(twin).items():
        torch.testing.assert_close(weights(net)[name], weight, rtol=0, atol=1e-5)
    assert residual(net.cpu()) < 1e-5


def test_a_wrapped_riemannian_model_gives_its_groups(tmp_path: Path) -> None:
    """An optimizer may be given the wrapper: the names change, and the manifolds are found all the same."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = SUBJECTS[0].constrained(Riemannian())
        wrapped = DistributedDataParallel(net)
        train(wrapped, adam(wrapped), batch())
        assert residual(net) < 1e-5
        state = wrapped.state_dict()
        assert list(state) == [f"module.{key}" for key in net.state_dict()]
        assert objective(wrapped, batch()).isfinite()
    finally:
        distributed.destroy_process_group()


def test_a_sharded_weight_is_refused_with_the_way_out() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        fully_shard(net, mesh=mesh)
        for method in ENGINES:
            with pytest.raises(
                ValueError, match=r"sharded over processes.*Constrain the model first, fully_shard it then"
            ):
                constrain(net, "0.weight", Stiefel, method)
    finally:
        distributed.destroy_process_group()
