"""One of two processes is killed: the other ends with an error, and nothing is written half."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn

from constraints import Riemannian, Trivialization, constrain, report
from constraints.optim import RiemannianAdam
from constraints.sharding import local
from manifolds import Stiefel

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 7), reason="fully_shard of torch 2.6 has no CPU")

STEPS = ("step, by an owner", "step, by sums", "step, on shards")


def _net(method: Any, step: str = STEPS[0]) -> Any:
    """A batch of matrices, for which nothing is sent, a tall weight and a wide one, for which something is, and free
    ones. Of the wide one the short side is cut."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    net.register_parameter("experts", nn.Parameter(torch.randn(4, 5, 3, dtype=torch.float64)))
    sent = {"step, by an owner": "2.weight", "step, by sums": "0.weight"}.get(step)
    if sent is not None:
        constrain(net, sent, Stiefel, method)
    return constrain(net, "experts", Stiefel, method, init="haar")


def _backward(net: Any) -> None:
    x = torch.ones(3, 4, dtype=torch.float64)
    net(x).square().mean().backward()
    net.experts.grad = torch.ones_like(net.experts)


def _said(call: Any) -> str:
    """The error; the empty string where there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _pieces(net: Any) -> list[Tensor]:
    return [local(p.detach()).clone() for p in net.parameters()]


def _moments(optimizer: Any) -> list[Tensor]:
    return [local(state["exp_avg"]).clone() for state in optimizer.state.values()]


def _one(rank: int, folder: str) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    other: Any = fully_shard(_net(Trivialization()), mesh=mesh)
    nets: dict[str, Any] = {k: fully_shard(_net(Riemannian(), k), mesh=mesh) for k in STEPS}
    optimizers = {name: RiemannianAdam(net, 1e-2) for name, net in nets.items()}
    for name, net in nets.items():
        _backward(net)
        optimizers[name].step()
        save(net.state_dict(), checkpoint_id=f"{folder}/before")
        _backward(net)
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    found: dict[str, Any] = {}
    for name, net in nets.items():
        before, moments = _pieces(net), _moments(optimizers[name])
        found[name] = _said(optimizers[name].step)
        found[name, "parameters"] = all(map(torch.equal, before, _pieces(net)))
        found[name, "moments"] = all(map(torch.equal, moments, _moments(optimizers[name])))
    found |= {
        "pass": _said(lambda: other(torch.ones(3, 4, dtype=torch.float64))),
        "report": _said(lambda: report(other)),
        "save": _said(lambda: save(net.state_dict(), checkpoint_id=f"{folder}/after")),
    }
    torch.save(found, f"{folder}/found.pt")
    os._exit(0)  # what torch would wait for is gone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    context = torch.multiprocessing.get_context("spawn")
    both = [context.Process(target=_one, args=(rank, str(folder))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    ended = [process.exitcode for process in both]
    for process in both:
        process.kill()
    assert ended == [0, -signal.SIGKILL]
    return folder


@pytest.mark.parametrize("call", [*STEPS, "pass", "report", "save"])
def test_the_other_process_gets_an_error(call: str, folder: Path) -> None:
    assert torch.load(folder / "found.pt")[call]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["parameters", "moments"])
def test_the_step_that_failed_changed_nothing(step: str, what: str, folder: Path) -> None:
    assert torch.load(folder / "found.pt")[step, what]


def test_a_checkpoint_is_whole_or_none(folder: Path) -> None:
    """Torch writes its table of contents last, and loads nothing without."""
    assert (folder / "before" / ".metadata").exists()
    assert not (folder / "after" / ".metadata").exists()
