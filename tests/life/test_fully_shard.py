"""Trivialized weights under `fully_shard`, on two processes: what one process does, and what surrounds it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import (
    AveragedModel,
    BlockSpec,
    Trivialization,
    constrain,
    export_state_dict,
    rebase,
    report,
    unconstrain,
)
from constraints.chart import BLIND_EVERY
from constraints.coordinates import coordinates_of
from constraints.sharding import local, whole
from manifolds import Stiefel
from manifolds.compositions import LowRank

from .processes import Ran, two_processes

DOUBLE = torch.float64
EPS = torch.finfo(DOUBLE).eps
ROUNDING = 1e4 * EPS  # of sums in another order, in some steps of Adam on gradients far above eps
CONV = BlockSpec.pattern("(g o) i k -> g o (i k)", g=3)


class Net(nn.Module):
    """One module of each kind, of odd sizes: no cut falls on a block."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.gru = nn.Linear(5, 7), nn.GRU(7, 6, batch_first=True)
        self.lstm, self.conv = nn.LSTM(6, 5, batch_first=True), nn.Conv1d(5, 9, 3, padding=1)
        self.low, self.head = nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.gru(self.lin(x))[0])[0]
        return self.head(self.low(self.conv(x.mT).mT.tanh())).mean(1)  # type: ignore[no-any-return]


def _net() -> Any:
    torch.manual_seed(0)
    net = constrain(Net().to(DOUBLE), "lin.weight", Stiefel)
    constrain(net, "gru.weight_hh_l0", Stiefel**3)
    constrain(net, "lstm.weight_hh_l0", Stiefel**4)
    constrain(net, "conv.weight", Stiefel, layout=CONV)
    return constrain(net, "low.weight", LowRank(2), init="haar")


def _small(seed: int = 0) -> Any:
    """Less of it, for what is no training."""
    torch.manual_seed(seed)
    net = nn.Sequential(OrderedDict(lin=nn.Linear(5, 7), low=nn.Linear(7, 7))).to(DOUBLE)
    return constrain(constrain(net, "lin.weight", Stiefel), "low.weight", LowRank(2), init="haar")


def _sharded(mesh: Any, net: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    inner: Any = (net.lin,) if isinstance(net, nn.Sequential) else (net.gru, net.conv)
    for module in inner:
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def _adam(net: nn.Module, lr: float = 1e-2) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=lr)


def _train(net: Any, optimizer: Any, parts: slice, steps: int = 3) -> None:
    for step in range(steps):
        x = torch.randn(8, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x[parts]).square().mean().backward()
        optimizer.step()


def refusal(call: Callable[[], object]) -> str:
    """What an error says; the empty string where there is none."""
    try:
        call()
    except (ValueError, AssertionError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _follows(mesh: Any) -> dict[str, Tensor]:
    """Steps so long that the base moves, of a sharded layer and of one that is whole and looked at as often."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name in ("sharded", "whole"):
        torch.manual_seed(0)
        net: Any = nn.Sequential(nn.Linear(7, 7, bias=False, dtype=DOUBLE))
        goal = Stiefel().random(7, 7, dtype=DOUBLE)
        every = None if name == "sharded" else BLIND_EVERY
        constrain(net, "0.weight", Stiefel, Trivialization(rebase_every=every), init="identity")
        if name == "sharded":
            fully_shard(net, mesh=mesh)
        optimizer = _adam(net, 5e-2)
        for _ in range(BLIND_EVERY + 3):
            optimizer.zero_grad()
            (net(torch.eye(7, dtype=DOUBLE)) - goal).square().mean().backward()
            optimizer.step()
        ((_, coordinates),) = coordinates_of(net[0])
        held: Any = coordinates[0]
        found[name] = torch.stack([net[0].weight.detach(), held.base])
    return found


def _half(mesh: Any) -> dict[str, Any]:
    """Training under a MixedPrecisionPolicy, of float32 weights."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(0)
    net: Any = constrain(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1)), "0.weight", Stiefel)
    seen: list[Tensor] = []
    net[0].register_forward_hook(lambda module, *_: seen.append(module.weight.detach().clone()))
    fully_shard(net, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer, losses = _adam(net, 1e-2), []
    for _ in range(8):
        optimizer.zero_grad()
        # 8 is so far that eight steps go a part of the way, and each by more than bfloat16 rounds
        loss = (net(torch.ones(3, 7)) - 8).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {
        "used": torch.stack([w.float() for w in seen]),
        "dtype": str(seen[0].dtype),
        "exact": net[0].weight.detach(),
        "losses": losses,
        "kept": str(net[0].parametrizations.weight.original.dtype),
    }


def _loads(mesh: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    found: dict[str, Any] = {}
    full = StateDictOptions(full_state_dict=True)
    source = _small(seed=1)
    with torch.no_grad():
        source.lin.parametrizations.weight.original.normal_(0, 0.1)
    plain, own = export_state_dict(source), source.state_dict()
    for name, state in (("plain", plain), ("own", own)):
        net = _sharded(mesh, _small())
        set_model_state_dict(net, dict(state), options=full)
        found[name] = {key: t.clone() for key, t in export_state_dict(net).items()}
        if name == "own":
            found["gathered"] = get_model_state_dict(net, options=full)
            again = _small()
            again.load_state_dict({key: t.clone() for key, t in found["gathered"].items()})
            found["again"] = export_state_dict(again)
    off = {**own, "lin.parametrizations.weight.0.base_point": torch.ones(7, 5, dtype=DOUBLE)}
    found["off"] = refusal(lambda: set_model_state_dict(net, off, options=full))
    found["kept"], found["source"] = {key: t.clone() for key, t in export_state_dict(net).items()}, plain
    some = torch.distributed.get_rank() == 0
    other = _sharded(mesh, _small())
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    found["uneven"] = refusal(lambda: set_model_state_dict(other, dict(plain) if some else {}, options=options))
    other = _sharded(mesh, _small())
    set_model_state_dict(other, dict(own) if some else {}, options=options)
    found["broadcast"] = export_state_dict(other)
    return found


def _refusals(mesh: Any) -> dict[str, str]:
    net, late = _sharded(mesh, _small()), _sharded(mesh, nn.Sequential(OrderedDict(lin=nn.Linear(5, 7))))
    before = export_state_dict(net)
    found = {
        "constrain": refusal(lambda: constrain(late, "lin.weight", Stiefel)),
        "unconstrain": refusal(lambda: unconstrain(net, "lin.weight")),
        "unconstrain parts": refusal(lambda: unconstrain(net, "low.weight")),
        "remove": refusal(lambda: nn.utils.parametrize.remove_parametrizations(net.lin, "weight")),
        "deepcopy": refusal(lambda: copy.deepcopy(net)),
        "assign": refusal(lambda: setattr(net.lin, "weight", torch.ones(7, 5, dtype=DOUBLE))),
    }
    after = export_state_dict(net)
    assert all(torch.equal(before[key], after[key]) for key in before)
    ((_, coordinates),) = coordinates_of(net.lin)
    held: Any = coordinates[0]
    local(held.base_point).mul_(1.5)
    found["base, in forward"] = refusal(lambda: net(torch.ones(2, 5, dtype=DOUBLE)))
    found["base, outside"] = refusal(lambda: net.lin.weight)
    return found


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    mesh, parts, found = init_device_mesh("cpu", (2,)), slice(4 * rank, 4 * rank + 4), dict[str, Any]()
    average = AveragedModel(_net())
    net = _sharded(mesh, _net())
    optimizer = _adam(net)
    _train(net, optimizer, parts)
    average.update_parameters(net)
    found["trained"] = {key: t.clone() for key, t in export_state_dict(net).items()}
    found["report"] = [(record.name, record.ok, list(record.residuals)) for record in report(net)]
    found["rebased"] = [done.momentum for done in rebase(net, optimizer)]
    found["after rebase"] = export_state_dict(net)
    _train(net, optimizer, parts)
    average.update_parameters(net)
    found["further"] = export_state_dict(net)
    found["average"] = export_state_dict(average.module)
    net.zero_grad()
    (net.lin.weight * (rank + 1)).sin().sum().backward()
    found["outside"] = whole(net.lin.parametrizations.weight.original.grad)
    with torch.no_grad():
        net.lin.weight = Stiefel().random(7, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    found["assigned"] = net.lin.weight.detach().clone()
    return found


def _others(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    return {"follows": _follows(mesh), "half": _half(mesh), "loads": _loads(mesh), "refusals": _refusals(mesh)}


@pytest.fixture(scope="module")
def _ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    notes: list[tuple[str, object]] = []
    root = tmp_path_factory.mktemp("sharded")
    ran = [two_processes(work, root, lambda *note: notes.append(note)) for work in (_work, _others)]
    return [{**first, **second} for first, second in zip(*ran, strict=True)], notes


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process does on the joined batch."""
    net = _net()
    average, optimizer = AveragedModel(net), _adam(net)
    _train(net, optimizer, slice(None))
    average.update_parameters(net)
    found: dict[str, Any] = {"trained": {key: t.clone() for key, t in export_state_dict(net).items()}}
    found["rebased"] = [done.momentum for done in rebase(net, optimizer)]
    found["after rebase"] = {key: t.clone() for key, t in export_state_dict(net).items()}
    _train(net, optimizer, slice(None))
    average.update_parameters(net)
    found["further"], found["average"] = export_state_dict(net), export_state_dict(average.module)
    return found


@pytest.mark.parametrize("when", ["trained", "after rebase", "further", "average"])
def test_two_processes_train_as_one(when: str, ranks: list[Any], alone: dict[str, Any]) -> None:
    """Adam, a rebase that carries its moments, more of Adam, and averages of it."""
    start = export_state_dict(_net())
    for key, value in alone[when].items():
        if value.is_floating_point() and "bias" not in key:
            assert (value - start[key]).abs().max() > 1e-3
        assert torch.equal(ranks[0][when][key], ranks[1][when][key])
        torch.testing.assert_close(ranks[0][when][key], value, rtol=0, atol=ROUNDING)


def test_reports_and_rebases_are_those_of_one_process(ranks: list[Any], alone: dict[str, Any]) -> None:
    names = [record.name for record in report(_net())]
    for rank in ranks:
        assert [name for name, _, _ in rank["report"]] == names
        assert all(ok for _, ok, _ in rank["report"])
        assert rank["rebased"] == alone["rebased"]


def test_a_gradient_from_outside_of_a_pass_is_averaged(ranks: list[Any]) -> None:
    """Each process has a loss of its own on module.weight; the mean of their gradients arrives, as from a pass."""
    net = _net()
    _train(net, optimizer := _adam(net), slice(None))
    rebase(net, optimizer)
    _train(net, optimizer, slice(None))
    net.zero_grad()
    ((net.lin.weight.sin().sum() + (2 * net.lin.weight).sin().sum()) / 2).backward()
    for rank in ranks:
        wanted = net.lin.parametrizations.weight.original.grad
        torch.testing.assert_close(rank["outside"], wanted, rtol=0, atol=ROUNDING)


def test_a_weight_can_be_assigned(ranks: list[Any]) -> None:
    point = Stiefel().random(7, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    for rank in ranks:
        torch.testing.assert_close(rank["assigned"], point, rtol=0, atol=4 * EPS)


def test_the_base_follows_on_all_processes_alike(ranks: list[Any]) -> None:
    """Looked at every so many steps, as on accelerators: it is then where `rebase_every` of one process puts it."""
    first, second = (rank["follows"] for rank in ranks)
    assert (first["whole"][1] - torch.eye(7, dtype=DOUBLE)).abs().max() > 0.1
    assert torch.equal(first["sharded"], second["sharded"])
    torch.testing.assert_close(first["sharded"], first["whole"], rtol=0, atol=ROUNDING)


def test_half_precision_passes_keep_float32_weights(ranks: list[Any]) -> None:
    """The pass has the weight rounded to bfloat16; coordinates and base stay in float32, and exact."""
    for rank in ranks:
        half = rank["half"]
        assert (half["dtype"], half["kept"]) == ("torch.bfloat16", "torch.float32")
        # a matrix whose entries are rounded by eps / 2 each: |E| <= eps / 2 |X|_F, X^T X is off by twice that
        eps = torch.finfo(torch.bfloat16).eps
        assert Stiefel().residual(half["used"]).max() <= 2 * eps * 5**0.5
        assert Stiefel().residual(half["exact"]) <= 16 * torch.finfo(torch.float32).eps
        assert half["losses"][-1] < half["losses"][0]
    assert torch.equal(ranks[0]["half"]["exact"], ranks[1]["half"]["exact"])


@pytest.mark.parametrize("kind", ["plain", "own", "again", "kept", "broadcast"])
def test_checkpoints_load(kind: str, ranks: list[Any]) -> None:
    """A plain and an own one into a sharded model, its own back into one process; after one that is refused, nothing
    has changed; and one that only the first process has."""
    for rank in ranks:
        source = rank["loads"]["source"]
        assert rank["loads"][kind].keys() == source.keys()
        for key, value in source.items():
            torch.testing.assert_close(rank["loads"][kind][key], value, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("constrain", "Constrain the model first, fully_shard it then, and make the optimizer last"),
        ("unconstrain", "Call unconstrain before fully_shard"),
        ("unconstrain parts", "Call unconstrain before fully_shard"),
        ("remove", "unconstrain before fully_shard"),
        ("deepcopy", "FSDP does not support deepcopy"),
        ("assign", "is not on Stiefel"),
        ("base, in forward", "was changed to a tensor that is not on"),
        ("base, outside", "was changed to a tensor that is not on"),
    ],
)
def test_what_is_refused_is_refused_on_all_processes(case: str, text: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert text in rank["refusals"][case]


@pytest.mark.parametrize(
    ("case", "text"), [("off", "is not on Stiefel"), ("uneven", "the processes have different keys")]
)
def test_bad_checkpoints_are_refused_on_all_processes(case: str, text: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert text in rank["loads"][case]
