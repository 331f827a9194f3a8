"""What happens to an optimizer between steps, on shards of every kind: gradients that are late, state that is changed,
dropped, loaded or of other keys, a rate of zero, points that were moved. On four processes, as on one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints.optim import RiemannianAdam, RiemannianMuon, RiemannianSGD
from constraints.sharding import local, whole
from manifolds import Euclidean, Manifold, Orthogonal, Stiefel

DOUBLE = torch.float64
CASES: dict[str, tuple[Manifold, tuple[int, ...], int, torch.dtype]] = {
    "batch": (Stiefel(), (4, 5, 3), 0, DOUBLE),
    "rows": (Stiefel(), (9, 2), 0, DOUBLE),
    "square": (Orthogonal(), (6, 6), 0, DOUBLE),
    "columns, one process without": (Orthogonal(), (5, 5), 1, DOUBLE),
    "inside blocks": (Stiefel**3, (12, 4), 0, DOUBLE),
    "two kinds of factors": (Stiefel * Euclidean**2, (9, 3), 0, DOUBLE),
    "short side of a wide one": (Stiefel(), (3, 10), 0, torch.complex128),
    "one matrix": (Stiefel(), (1, 6, 3), 0, DOUBLE),
    "float32": (Orthogonal(), (6, 6), 0, torch.float32),
    "half precision": (Orthogonal(), (6, 6), 0, torch.bfloat16),
}
PROCESSES = 4
OPTIMIZERS: dict[str, Any] = {
    "Adam": partial(RiemannianAdam, lr=1e-2),
    "SGD": partial(RiemannianSGD, lr=1e-2),
    "Muon": partial(RiemannianMuon, lr=1e-2),
}
MOMENTS = ("exp_avg", "momentum_buffer")


def _cut(name: str, mesh: Any, t: Tensor) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    return t.clone() if mesh is None else distribute_tensor(t, mesh, [Shard(CASES[name][2])])


def _point(name: str) -> Tensor:
    manifold, shape, _, dtype = CASES[name]
    made, generator = torch.float32 if dtype == torch.bfloat16 else dtype, torch.Generator().manual_seed(1)
    return manifold.random(*shape, generator=generator, dtype=made).to(dtype)


def _lived(kind: str, mesh: Any = None) -> dict[Any, Tensor]:
    """Points and state after each event."""
    ps: dict[str, Any] = {name: nn.Parameter(_cut(name, mesh, _point(name))) for name in CASES}
    if kind == "Muon":  # whose factors have other keys each, which load_state_dict does not expect
        del ps["two kinds of factors"]
    optimizer = OPTIMIZERS[kind]([{"params": [p], "manifold": CASES[name][0]} for name, p in ps.items()])
    found: dict[Any, Tensor] = {}

    def step(event: str, names: Any = ps) -> None:
        for i, (name, p) in enumerate(ps.items()):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(7 * i + len(found)), dtype=DOUBLE)
            p.grad = _cut(name, mesh, g.to(p.dtype)) if name in names else None
        optimizer.step()
        for name, p in ps.items():
            found[event, name, "point"] = whole(p.detach()).clone()
            found.update({(event, name, key): whole(t).clone() for key, t in optimizer.state.get(p, {}).items()})

    def turned(**options: Any) -> None:
        for group in optimizer.param_groups:
            group.update(options)

    step("first, some late", [*ps][::2])
    step("all")
    for p in ps.values():
        for key, t in optimizer.state[p].items():
            if key.partition(":")[0] in MOMENTS:
                t.mul_(0.5)
        if "step" in optimizer.state[p]:
            optimizer.state[p]["step"].fill_(7)
    step("moments halved in place, and the number of the step")
    turned(**{"Adam": {"amsgrad": True}, "SGD": {"momentum": 0.9}, "Muon": {"nesterov": False}}[kind])
    step("an option that has other state")
    turned(lr=0.0)
    step("no rate")
    turned(lr=1e-2)
    for name in [*ps][1::2]:
        optimizer.state.pop(ps[name])
    step("state dropped, of some")
    for p in ps.values():
        local(p.detach()).mul_(-1)  # another point of the manifolds, but for linear ones none that Adam knows of
    step("points moved")
    saved = optimizer.state_dict()
    optimizer = OPTIMIZERS[kind]([{"params": [p], "manifold": CASES[name][0]} for name, p in ps.items()])
    optimizer.load_state_dict(saved)
    step("loaded")
    saved = optimizer.state_dict()
    saved["state"] = {i: {key: whole(t) for key, t in entry.items()} for i, entry in saved["state"].items()}
    optimizer.load_state_dict(saved)
    step("loaded, as one process has it")
    return found


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (4,))
    return {kind: _lived(kind, mesh) for kind in OPTIMIZERS}


@pytest.mark.timeout(320)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_whatever_happens_shards_follow_one_process(kind: str, ranks: list[Any]) -> None:
    alone = _lived(kind)
    for rank in ranks:
        assert rank[kind].keys() == alone.keys()
    for (event, name, key), value in alone.items():
        # sums of other order in eight steps that stretch them by less than two each
        bound = 256 * torch.finfo(value.dtype if value.is_floating_point() else CASES[name][3]).eps
        for rank in ranks:
            mine = rank[kind][event, name, key]
            assert torch.equal(mine, ranks[0][kind][event, name, key]), (event, name, key)
            said = partial("{}, {}, {}: {}".format, event, name, key)
            torch.testing.assert_close(mine, value, rtol=bound, atol=bound, msg=said)
