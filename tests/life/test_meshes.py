"""Meshes of two axes, and tensor parallelism, on four processes: what one process does, or a refusal by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, export_state_dict
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianMuon
from constraints.sharding import whole
from manifolds import Manifold, Orthogonal, Stiefel

from .test_fully_shard import refusal

DOUBLE = torch.float64
POINTS: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    "experts": (Stiefel(), (4, 6, 4)),
    "uneven": (Stiefel(), (6, 6, 4)),  # on four processes the last has none
    "blocks": (Orthogonal**4, (16, 4)),
    "tall, uneven": (Stiefel(), (18, 4)),
    "few rows": (Stiefel(), (3, 2)),
    "square": (Orthogonal(), (6, 6)),
}
PLACED: dict[str, tuple[Any, Any]] = {  # axis of each of the two mesh axes
    "replicated": ("replicate", "replicate"),
    "HSDP": ("replicate", 0),
    "HSDP, the other way": (0, "replicate"),
    "two axes": (0, 1),
    "two axes, the other way": (1, 0),
    "one axis twice": (0, 0),
}
PROCESSES = 4
OPTIMIZERS: dict[str, Any] = {"Adam": RiemannianAdam, "Muon": RiemannianMuon}
METHODS: dict[str, Method] = {"Riemannian": Riemannian(), "Trivialization": Trivialization()}
STEPS = 3


def _point(name: str) -> Tensor:
    manifold, shape = POINTS[name]
    return manifold.random(*shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def _gradient(name: str, step: int) -> Tensor:
    return torch.randn(POINTS[name][1], generator=torch.Generator().manual_seed(step), dtype=DOUBLE)


def _stepped(kind: str, cut: Any = lambda t: t) -> dict[str, Tensor]:
    ps = {name: nn.Parameter(cut(_point(name))) for name in POINTS}
    optimizer = OPTIMIZERS[kind]([{"params": [p], "manifold": POINTS[name][0]} for name, p in ps.items()], lr=1e-2)
    for step in range(STEPS):
        for name, p in ps.items():
            # one factor has no gradient at first
            p.grad = None if step == 0 and name == "experts" else cut(_gradient(name, step))
        optimizer.step()
    return {name: whole(p.detach()) for name, p in ps.items()}


def _net(method: Method) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return constrain(net, ["0.weight", "2.weight"], Stiefel, method)


def _train(net: Any, part: slice = slice(None)) -> dict[str, Tensor]:
    free = isinstance(constraint_of(net), nn.Parameter)
    optimizer: Any = RiemannianAdam(net, 1e-2) if free else torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(STEPS):
        x = torch.randn(8, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(step))[part]
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
    return {key: whole(t.detach()) for key, t in export_state_dict(net).items()}


def constraint_of(net: Any) -> Any:
    return net[0]._parameters.get("weight")


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    line, mesh = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    found: dict[Any, Any] = {}
    for name, axes in PLACED.items():
        placements = [Replicate() if axis == "replicate" else Shard(axis) for axis in axes]
        for kind in OPTIMIZERS:
            found[kind, name] = _stepped(kind, partial(distribute_tensor, device_mesh=mesh, placements=placements))

    def planned(net: Any, mesh: Any) -> Any:
        return parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    def other(p: Any) -> Any:
        return Shard(1) if p.dim() == 2 and p.placements == (Shard(0),) else None

    four, two = slice(2 * rank, 2 * rank + 2), slice(rank // 2 * 4, rank // 2 * 4 + 4)
    for name, method in METHODS.items():
        found[name, "hybrid"] = _train(fully_shard(_net(method), mesh=mesh), four)
    held = METHODS["Riemannian"]
    found["parallel"] = _train(planned(_net(held), line))
    both: Any = fully_shard(planned(_net(held), mesh["model"]), mesh=mesh["data"], shard_placement_fn=other)
    found["both"] = _train(both, two)
    twice: Any = fully_shard(planned(_net(held), mesh["model"]), mesh=mesh["data"])
    found["one axis"] = refusal(lambda: RiemannianAdam(twice, 1e-2))
    found["trivialized"] = refusal(lambda: planned(_net(METHODS["Trivialization"]), line))
    return found


@pytest.mark.timeout(320)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("placed", PLACED)
def test_a_step_is_that_of_one_process(kind: str, placed: str, ranks: list[Any]) -> None:
    for name, value in _stepped(kind).items():
        assert (value - _point(name)).abs().max() > 1e-3
        for rank in ranks:
            assert torch.equal(rank[kind, placed][name], ranks[0][kind, placed][name])
            # a batch in parts is multiplied by another kernel of torch
            torch.testing.assert_close(rank[kind, placed][name], value, rtol=0, atol=64 * torch.finfo(DOUBLE).eps)


@pytest.mark.parametrize(
    ("case", "method"),
    [
        (("Riemannian", "hybrid"), "Riemannian"),
        (("Trivialization", "hybrid"), "Trivialization"),
        ("parallel", "Riemannian"),
        ("both", "Riemannian"),
    ],
    ids=str,
)
def test_a_model_trains_as_in_one_process(case: Any, method: str, ranks: list[Any]) -> None:
    """Also where the refusal below was followed to the letter."""
    for key, value in _train(_net(METHODS[method])).items():
        for rank in ranks:
            assert torch.equal(rank[case][key], ranks[0][case][key])
            # 1e4 eps: sums in another order, in steps of Adam on gradients far above eps
            torch.testing.assert_close(rank[case][key], value, rtol=0, atol=1e4 * torch.finfo(DOUBLE).eps)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("one axis", "let fully_shard cut another: by a shard_placement_fn"),
        (
            "trivialized",
            "weight of Linear(in_features=4, out_features=8, bias=True) is computed by Trivialization(), and",
        ),
    ],
)
def test_what_is_refused(case: str, text: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert text in rank[case]
