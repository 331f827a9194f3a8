"""Riemannian steps on sharded Parameters: those of one process, however they are cut; to the bit, but for rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, exchange
from constraints.exchange import LIMIT
from constraints.optim import RiemannianAdam, RiemannianLBFGS, RiemannianMuon, RiemannianSGD
from constraints.sharding import whole
from manifolds import Euclidean, Manifold, Orthogonal, Sphere, Stiefel
from manifolds.positive_definite import PositiveDefinite

from .processes import Ran, two_processes
from .test_fully_shard import refusal

DOUBLE = torch.float64


@dataclass(frozen=True)
class Case:
    """A parameter on two processes: where it is cut, None for replicated; whether one of them makes its steps."""

    manifold: Manifold
    shape: tuple[int, ...]
    axis: int | None
    owned: bool
    dtype: torch.dtype = DOUBLE
    sliced: bool = False  # if owned, but not for Adam and SGD


CASES = {
    "replicated": Case(Stiefel(), (7, 3), None, False),
    "a batch": Case(Stiefel(), (4, 5, 3), 0, False),
    "a batch, uneven": Case(Orthogonal(), (3, 4, 4), 0, False),
    "a batch axis that is not the first": Case(Stiefel(), (2, 4, 5, 3), 1, False),
    "vectors": Case(Sphere(), (5, 4), 0, False),
    "between blocks": Case(Orthogonal**4, (16, 4), 0, False),
    "between blocks, uneven": Case(Stiefel**3, (9, 2), 0, True),  # chunks of 5 rows cut the second block
    "inside a block": Case(Stiefel**3, (12, 4), 0, True),
    "rows": Case(Stiefel(), (9, 2), 0, True, sliced=True),
    "rows of a square": Case(Stiefel(), (5, 5), 0, True),
    "columns": Case(Stiefel(), (5, 4), 1, True),
    "a square": Case(Orthogonal(), (5, 5), 0, True),
    "an empty shard": Case(Stiefel(), (1, 4, 3), 0, True),
    "two kinds of factors": Case(Stiefel * Euclidean**2, (9, 3), 0, True),
    "a cone": Case(PositiveDefinite(), (3, 3), 0, True),
    "half precision": Case(Orthogonal**4, (16, 4), 0, False, torch.bfloat16),
    "half precision, owned": Case(Stiefel(), (5, 5), 0, True, torch.bfloat16),
    "complex": Case(Stiefel(), (4, 5, 3), 0, False, torch.complex128),
}
OPTIMIZERS: dict[str, Any] = {
    "Adam": lambda groups: RiemannianAdam(groups, lr=1e-2, amsgrad=True),
    "SGD": lambda groups: RiemannianSGD(groups, lr=1e-2, momentum=0.9),
    "Muon": lambda groups: RiemannianMuon(groups, lr=1e-2),
}
STEPS = 4


def _owned(name: str, kind: str) -> bool:
    return CASES[name].owned and not (CASES[name].sliced and kind != "Muon")


def _point(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    made = torch.float32 if case.dtype == torch.bfloat16 else case.dtype
    return case.manifold.random(*case.shape, generator=generator, dtype=made).to(case.dtype)


def _gradient(case: Case, step: int) -> Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(step), dtype=DOUBLE).to(case.dtype)


def _distributed(case: Case, value: Tensor, mesh: Any) -> Tensor:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    return distribute_tensor(value, mesh, [Replicate() if case.axis is None else Shard(case.axis)])


def _groups(ps: Any) -> list[dict[str, Any]]:
    return [{"params": [p], "manifold": CASES[name].manifold} for name, p in ps.items()]


def _steps(ps: Any, optimizer: Any, steps: range, mesh: Any = None) -> None:
    for step in steps:
        for name, p in ps.items():
            g = _gradient(CASES[name], step)
            p.grad = g if mesh is None else _distributed(CASES[name], g, mesh)
        optimizer.step()


def _parameters(mesh: Any = None) -> Any:
    points = {name: _point(case) for name, case in CASES.items()}
    return {name: nn.Parameter(x if mesh is None else _distributed(CASES[name], x, mesh)) for name, x in points.items()}


def _flat(ps: Any, optimizer: Any) -> dict[str, Any]:
    """What a checkpoint has: points and state, flat."""
    kept: dict[str, Any] = {f"{name}/point": p.detach() for name, p in ps.items()}
    for name, p in ps.items():
        kept.update({f"{name}/{key}": t for key, t in optimizer.state[p].items()})
    return kept


def _work(rank: int, folder: str) -> Any:
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode

    mesh, found = init_device_mesh("cpu", (2,)), dict[Any, Any]()
    for kind, make in OPTIMIZERS.items():
        ps = _parameters(mesh)
        if kind == "Muon":  # whose factors have other keys each, which load_state_dict does not expect
            del ps["two kinds of factors"]
        optimizer = make(_groups(ps))
        _steps(ps, optimizer, range(2), mesh)
        if kind == "Adam":
            save(_flat(ps, optimizer), checkpoint_id=folder)
        _steps(ps, optimizer, range(2, 3), mesh)
        for p in ps.values():
            p.grad = None
        again = {name: nn.Parameter(p.detach().clone()) for name, p in ps.items()}
        loaded = make(_groups(again))
        loaded.load_state_dict(optimizer.state_dict())
        _steps(ps, optimizer, range(3, STEPS), mesh)
        _steps(again, loaded, range(3, STEPS), mesh)
        for name in ps:
            found[kind, name] = whole(ps[name].detach()).clone()
            found[kind, name, "keys"] = list(optimizer.state[ps[name]])
            found[kind, name, "resumed"] = whole(again[name].detach()).clone()
    for name, case in CASES.items():
        one = {name: nn.Parameter(_distributed(case, _point(case), mesh))}
        optimizer = OPTIMIZERS["SGD"](_groups(one))
        _steps(one, optimizer, range(1), mesh)
        one[name].grad = _distributed(case, _gradient(case, 1), mesh)
        with CommDebugMode() as sent:
            optimizer.step()
        found["sent", name] = _counts(sent)
    for limit in (LIMIT, 1):  # bytes that one collective receives
        ps = _parameters(mesh)
        optimizer = OPTIMIZERS["Adam"](_groups(ps))
        for name, p in ps.items():
            p.grad = _distributed(CASES[name], _gradient(CASES[name], 0), mesh)
        with CommDebugMode() as sent, mock.patch.object(exchange, "LIMIT", limit):
            optimizer.step()
        found["sent", limit] = _counts(sent)
        found["tensors", limit] = sum(3 + len(optimizer.state[p]) for n, p in ps.items() if _owned(n, "Adam"))
        found["stepped", limit] = {name: whole(p.detach()).clone() for name, p in ps.items()}
    return {**found, **_refused(rank, mesh)}


def _counts(sent: Any) -> list[int]:
    """How often something was gathered, and sent from all to all."""
    counts = sent.get_comm_counts().items()
    return [sum(count for op, count in counts if word in str(op)) for word in ("gather", "alltoall")]


def _refused(rank: int, mesh: Any) -> dict[str, Any]:
    """A gradient that is NaN in what one process has of it, and what takes no shards."""
    from torch.distributed.tensor import Partial, Shard, distribute_tensor

    found: dict[Any, Any] = {}
    for name in ("a batch", "rows"):
        case = CASES[name]
        ps = {name: nn.Parameter(_distributed(case, _point(case), mesh))}
        optimizer = OPTIMIZERS["Adam"](_groups(ps))
        _steps(ps, optimizer, range(1), mesh)
        before = [whole(ps[name].detach()).clone(), whole(optimizer.state[ps[name]]["exp_avg"]).clone()]
        g: Any = _distributed(case, _gradient(case, 1), mesh)
        if rank == 1:
            g.to_local().fill_(torch.nan)
        ps[name].grad = g
        found["nan", name] = refusal(optimizer.step)
        after = [whole(ps[name].detach()), whole(optimizer.state[ps[name]]["exp_avg"])]
        found["unchanged", name] = all(map(torch.equal, before, after))
        _steps(ps, optimizer, range(1, 3), mesh)
        found["goes on", name] = whole(ps[name].detach()).clone()
    point = _point(CASES["rows"])
    cut = distribute_tensor(point, mesh, [Shard(0)])
    rows = {"rows": nn.Parameter(cut)}
    found["lbfgs"] = refusal(lambda: RiemannianLBFGS(_groups(rows)))
    sums: Any = cut.redistribute(mesh, [Shard(0)])
    sums = type(sums).from_local(point, mesh, [Partial()], run_check=False)
    found["partial"] = refusal(lambda: OPTIMIZERS["Adam"](_groups({"rows": nn.Parameter(sums)})))
    found["off"] = refusal(lambda: OPTIMIZERS["Adam"](_groups({"rows": nn.Parameter(2 * cut)})))
    from torch.distributed.fsdp import fully_shard

    net: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(net, "0.weight", Stiefel, Riemannian())
    early = RiemannianAdam(net)
    fully_shard(net, mesh=mesh)
    net(torch.ones(2, 4)).sum().backward()
    for group in early.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    found["made before"] = refusal(early.step)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def _ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    notes: list[tuple[str, object]] = []
    root = tmp_path_factory.mktemp("steps")
    return two_processes(_work, root, lambda *note: notes.append(note), str(folder / "saved")), notes


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in OPTIMIZERS for n in CASES if (k, n) != ("Muon", "two kinds of factors")]
)
def test_a_sharded_step_is_that_of_one_process_to_the_bit(kind: str, name: str, ranks: list[Any]) -> None:
    """Also after its state was saved and loaded."""
    ps = {name: nn.Parameter(_point(CASES[name]))}
    start = ps[name].detach().clone()
    _steps(ps, OPTIMIZERS[kind](_groups(ps)), range(STEPS))
    assert (ps[name].detach() - start).abs().max() > 1e-3
    for rank in ranks:
        # a batch on one process and half of it on another add up in one order, but for the kernel that torch takes
        eps = 16 * torch.finfo(CASES[name].dtype).eps if not _owned(name, kind) else 0
        torch.testing.assert_close(rank[kind, name], ps[name].detach(), rtol=0, atol=eps)
        torch.testing.assert_close(rank[kind, name, "resumed"], ps[name].detach(), rtol=0, atol=eps)
        assert torch.equal(rank[kind, name], ranks[0][kind, name])


def test_state_has_one_order_on_all_processes(ranks: list[Any]) -> None:
    """Torch gathers it key by key: in two orders, a process would wait for another tensor than it is sent."""
    keys = [key for key in ranks[0] if key[-1] == "keys"]
    assert len(keys) > len(CASES)
    assert all(ranks[0][key] == ranks[1][key] for key in keys)


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent(name: str, ranks: list[Any]) -> None:
    """Nothing where every process has whole factors, or sums will do; else once to the owner and once back."""
    for rank in ranks:
        assert rank["sent", name] == [0, 2 if _owned(name, "SGD") else 0]


def test_tensors_are_sent_together(ranks: list[Any]) -> None:
    """As far as memory is to go; what arrives is the same. Which state there is, the first step tells by a gather."""
    for rank in ranks:
        assert rank["sent", LIMIT] == [rank["sent", 1][0], 2]
        # one by one: points and gradients, and points and state back
        assert rank["sent", 1][1] == rank["tensors", 1]
        for name, value in rank["stepped", LIMIT].items():
            assert torch.equal(value, rank["stepped", 1][name])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # which is what one process is
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_of_two_processes_goes_on_in_one(name: str, ranks: list[Any], folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    assert ranks
    ps = {name: nn.Parameter(_point(CASES[name]))}
    optimizer = OPTIMIZERS["Adam"](_groups(ps))
    _steps(ps, optimizer, range(1))
    state = _flat(ps, optimizer)
    load(state, checkpoint_id=str(folder / "saved"))
    _steps(ps, optimizer, range(2, STEPS))
    eps = 16 * torch.finfo(CASES[name].dtype).eps
    torch.testing.assert_close(ps[name].detach(), ranks[0]["Adam", name], rtol=0, atol=eps)


@pytest.mark.parametrize("name", ["a batch", "rows"])
def test_nan_on_one_process_is_refused_on_all(name: str, ranks: list[Any]) -> None:
    """Nothing has changed, and training goes on as if there had been no such step."""
    ps = {name: nn.Parameter(_point(CASES[name]))}
    _steps(ps, OPTIMIZERS["Adam"](_groups(ps)), range(3))
    for rank in ranks:
        assert "NaN" in rank["nan", name] or "another process refused this step" in rank["nan", name]
        assert rank["unchanged", name]
        torch.testing.assert_close(rank["goes on", name], ps[name].detach(), rtol=0, atol=1e-14)
    assert "NaN" in ranks[1]["nan", name]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("lbfgs", "RiemannianLBFGS takes whole parameters"),
        ("partial", "takes Shard and Replicate"),
        ("off", "is not on Stiefel"),
        ("made before", "is another Parameter now than the one that this RiemannianAdam holds"),
    ],
)
def test_what_is_refused_is_refused_on_all_processes(case: str, text: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert text in rank[case]
