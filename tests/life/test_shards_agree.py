"""What one process meets and another does not, on shards of every kind and on several meshes: all refuse it or none,
and what processes have in common stays equal to the bit. On four processes, two by two."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from constraints.optim import RiemannianAdam, RiemannianSGD, clip_riemannian_grad_norm_
from constraints.sharding import Sharing, local, whole
from manifolds import Manifold, Orthogonal, Stiefel

from .test_fully_shard import refusal

PROCESSES = 4
DOUBLE = torch.float64
# of the axes of the mesh ("data", "model"), those that the tensor lies on, and where they cut it
POINTS: dict[str, tuple[Manifold, tuple[int, ...], dict[str, int | None]]] = {
    "experts of data": (Orthogonal(), (4, 4, 4), {"data": 0}),
    "more of data": (Orthogonal(), (4, 5, 5), {"data": 0}),
    "experts of both": (Orthogonal(), (4, 4, 4), {"data": None, "model": 0}),
    "replicated": (Orthogonal(), (4, 4), {"data": None, "model": None}),
    "replicated, of another shape": (Orthogonal(), (5, 5), {"data": None, "model": None}),
    "owned": (Orthogonal(), (4, 4), {"model": 0}),
    "owned in each of data": (Orthogonal(), (4, 4), {"data": None, "model": 0}),
    "owned by one of data": (Orthogonal(), (4, 4), {"data": 0}),
    "rows": (Stiefel(), (9, 3), {"data": 0}),
    "two axes": (Orthogonal(), (4, 4), {"data": 0, "model": 1}),
    "whole": (Orthogonal(), (4, 4), {}),
}
OPTIMIZERS: dict[str, Any] = {
    "Adam": partial(RiemannianAdam, lr=1e-2),
    "SGD": partial(RiemannianSGD, lr=1e-2, momentum=0.9),
}


def _cut(name: str, mesh: Any, t: Tensor) -> Any:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    axes = POINTS[name][2]
    if not axes or mesh is None:
        return t.clone()
    there = [Replicate() if axis is None else Shard(axis) for axis in axes.values()]
    return distribute_tensor(t, mesh if len(axes) == 2 else mesh[next(iter(axes))], there)


def _parameters(mesh: Any) -> dict[str, Any]:
    points = {}
    for i, (name, (manifold, shape, _)) in enumerate(POINTS.items()):
        x = manifold.random(*shape, generator=torch.Generator().manual_seed(i), dtype=DOUBLE)
        points[name] = nn.Parameter(_cut(name, mesh, x))
    return points


def _give(ps: dict[str, Any], mesh: Any, step: int) -> None:
    for i, (name, p) in enumerate(ps.items()):
        g = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * (step + 1) + i), dtype=DOUBLE)
        p.grad = _cut(name, mesh, g)


def _groups(ps: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [p], "manifold": POINTS[name][0]} for name, p in ps.items()]


def _values(ps: dict[str, Any], optimizer: Any) -> dict[Any, Tensor]:
    found = {(name, "point"): whole(p.detach()).clone() for name, p in ps.items()}
    return found | {(n, k): whole(t).clone() for n, p in ps.items() for k, t in optimizer.state[p].items()}


def _one_meets(rank: int, kind: str, name: str, what: str, mesh: Any) -> dict[Any, Any]:
    """What happens in a step in which the last process alone meets something in its part of one parameter."""
    ps = _parameters(mesh)
    optimizer = OPTIMIZERS[kind](_groups(ps))
    for step in range(3):
        _give(ps, mesh, step)
        optimizer.step()
    before = _values(ps, optimizer)
    own = {key: local(t).clone() for key, t in optimizer.state[ps[name]].items() if t.dim()}
    _give(ps, mesh, 3)
    if rank == PROCESSES - 1:
        mine, seconds = local(ps[name].grad), optimizer.state[ps[name]].get("exp_avg_sq")
        if what == "NaN":
            mine.fill_(torch.nan)
        elif seconds is not None:
            local(seconds).fill_(-1.0)  # whose root is NaN
        else:
            mine.mul_(1e40)
    points = {n: local(p.detach()).clone() for n, p in ps.items()}
    found: dict[Any, Any] = {"said": refusal(optimizer.step)}
    found["points"] = all(torch.equal(x, local(ps[n].detach())) for n, x in points.items())
    if what == "NaN":
        after = _values(ps, optimizer)
        found["state"] = all(torch.equal(t, after[key]) for key, t in before.items())
    elif rank == PROCESSES - 1:  # what moments hold of it is not to be met again
        for key, t in own.items():
            local(optimizer.state[ps[name]][key]).copy_(t)
    for step in range(4, 6):
        _give(ps, mesh, step)
        optimizer.step()
    found["kept"] = _values(ps, optimizer)
    return found


def _written(rank: int, mesh: Any) -> dict[Any, Any]:
    """The last process alone writes NaN into its slice; then it takes that back."""
    ps = _parameters(mesh)
    optimizer, old = RiemannianAdam(_groups(ps)), local(ps["rows"].detach()).clone()
    _give(ps, mesh, 0)
    if rank == PROCESSES - 1:
        local(ps["rows"].detach()).fill_(torch.nan)
    found: dict[Any, Any] = {"said": refusal(optimizer.step)}
    if rank == PROCESSES - 1:
        local(ps["rows"].detach()).copy_(old)
    found["points"] = all(torch.equal(whole(p.detach()), whole(_parameters(mesh)[n].detach())) for n, p in ps.items())
    return found | {"again": refusal(optimizer.step)}


def _of_unequal_number(rank: int, mesh: Any) -> dict[Any, Any]:
    """A point on all processes, and a stage on each two of them, the second with a point more; then one has no gradient
    of a point of the second stage."""
    x = Orthogonal().random(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    everywhere, here = (mesh, [Replicate(), Shard(0)]), (mesh["model"], [Shard(0)])
    ps = [nn.Parameter(distribute_tensor(x, *where)) for where in [everywhere, here, here][: 2 + rank // 2]]
    optimizer = RiemannianAdam([{"params": ps, "manifold": Orthogonal()}])
    for p in ps:
        p.grad = torch.zeros_like(p).copy_(p.detach()).sin()
    found: dict[Any, Any] = {"first": refusal(optimizer.step), "points": [whole(p.detach()).clone() for p in ps]}
    if rank == PROCESSES - 1:
        ps[-1].grad = None
    found["second"] = refusal(optimizer.step)
    found["kept"] = all(torch.equal(old, whole(p.detach())) for p, old in zip(ps, found["points"], strict=True))
    return found


def _different(rank: int, mesh: Any) -> dict[Any, Any]:
    """Gradients of other parameters on each process; then what the refusal says."""
    ps = _parameters(mesh)
    optimizer = RiemannianAdam(_groups(ps))
    _give(ps, mesh, 0)
    ps["owned"].requires_grad_(False)
    ps["owned"].grad = None
    ps["rows" if rank % 2 else "replicated"].grad = None
    points = {n: local(p.detach()).clone() for n, p in ps.items()}
    found: dict[Any, Any] = {"said": refusal(optimizer.step)}
    found["points"] = all(torch.equal(x, local(ps[n].detach())) for n, x in points.items())
    for p in ps.values():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
    found["again"] = refusal(optimizer.step)
    return found


def _on_another_device(mesh: Any) -> dict[Any, Any]:
    """Parameters whose memory is not on the device of the mesh, as under a CPUOffloadPolicy."""
    ps = _parameters(mesh)
    ps = {name: p for name, p in ps.items() if name in ("experts of data", "rows", "owned")}
    optimizer = RiemannianAdam(_groups(ps))
    for step in range(2):
        _give(ps, mesh, step)
        with mock.patch.object(type(mesh), "device_type", "meta", create=True):
            optimizer.step()
    saved = {i: {key: whole(t) for key, t in entry.items()} for i, entry in optimizer.state_dict()["state"].items()}
    _give(ps, mesh, 2)
    with mock.patch.object(type(mesh), "device_type", "meta", create=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        optimizer.step()
    return _values(ps, optimizer)


def _clipped(mesh: Any) -> dict[Any, Tensor]:
    """Norms and gradients, of parameters on several meshes and on none."""
    ps = _parameters(mesh)
    _give(ps, mesh, 0)
    groups: list[dict[str, Any]] = [*_groups(ps), {"params": [nn.Parameter(p.detach().clone()) for p in ps.values()]}]
    for p, free in zip(ps.values(), groups[-1]["params"], strict=True):
        free.grad = p.grad.clone()
    norm = clip_riemannian_grad_norm_(groups, 0.1)
    return {"norm": norm, **{name: whole(p.grad).clone() for name, p in ps.items()}}


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    found: dict[Any, Any] = {}
    for kind in OPTIMIZERS:
        found[kind, "NaN"] = _one_meets(rank, kind, "rows", "NaN", mesh)
        found[kind, "long"] = _one_meets(rank, kind, "experts of data", "long", mesh)
    found["written"] = _written(rank, mesh)
    shared = Sharing([_parameters(mesh)["two axes"]])
    found["lists"] = [shared.agree(some) for some in ([0, 1], [rank], [1] * (rank + 1), [])]
    found["unequal"] = _of_unequal_number(rank, mesh)
    found["different"] = _different(rank, mesh)
    found["clipped"] = _clipped(mesh)
    found["elsewhere"] = _on_another_device(mesh)
    some = nn.Parameter(distribute_tensor(Stiefel().random(8, 3), DeviceMesh("cpu", [0, 1]), [Shard(0)]))
    found["outside"] = refusal(lambda: RiemannianAdam([{"params": [some], "manifold": Stiefel()}]))
    return found


def _peers(name: str, rank: int) -> list[int]:
    """The processes that hold all that this one does of the parameter, when it is put together."""
    along = POINTS[name][2]
    return [
        r
        for r in range(PROCESSES)
        if ("data" in along or r // 2 == rank // 2) and ("model" in along or r % 2 == rank % 2)
    ]


@pytest.mark.timeout(320)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("what", ["NaN", "long"])
def test_all_refuse_what_one_process_meets(what: str, kind: str, ranks: list[Any]) -> None:
    """Also those that share nothing with it but another parameter; and what is whole on several stays alike."""
    assert ("NaN or Inf" if what == "NaN" else "so long") in ranks[-1][kind, what]["said"]
    for rank, found in enumerate(ranks):
        mine = found[kind, what]
        assert rank == PROCESSES - 1 or "another process refused this step" in mine["said"] or "NaN" in mine["said"]
        assert mine["points"]
        assert mine.get("state", True)
        for (name, key), value in mine["kept"].items():
            if key != "drift" or ("experts" not in name and "more" not in name):  # of points that each has for itself
                for peer in _peers(name, rank):
                    assert torch.equal(value, ranks[peer][kind, what]["kept"][name, key]), (name, key)


def test_all_refuse_a_value_that_is_none_in_one_slice(ranks: list[Any]) -> None:
    """Who sees it by itself adds up with the others all the same, and none waits for ever."""
    for rank, found in enumerate(ranks):
        said = "is not on Stiefel" if rank % 2 else "another process refused this step"
        assert said in found["written"]["said"]
        assert found["written"]["points"]
        assert found["written"]["again"] == ""


def test_lists_of_other_lengths_are_not_alike(ranks: list[Any]) -> None:
    """Which is said, and no process waits for the numbers of another."""
    assert all(found["lists"] == [True, False, False, True] for found in ranks)


def test_stages_may_be_of_unequal_number(ranks: list[Any]) -> None:
    """What processes share is compared, and nothing else; a gradient that one has not, all refuse."""
    x = nn.Parameter(Orthogonal().random(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    x.grad = x.detach().sin()
    RiemannianAdam([{"params": [x], "manifold": Orthogonal()}]).step()
    for rank, found in enumerate(ranks):
        mine = found["unequal"]
        assert mine["first"] == ""
        assert len(mine["points"]) == 2 + rank // 2
        for y in mine["points"]:
            torch.testing.assert_close(y, x.detach(), rtol=0, atol=64 * torch.finfo(DOUBLE).eps)
        assert "have gradients of different sharded parameters" in mine["second"]
        assert mine["kept"]


def test_gradients_of_other_parameters_on_each_process_are_refused(ranks: list[Any]) -> None:
    """By an error that names one, and none that is frozen on all; it may be followed to the letter."""
    for rank, found in enumerate(ranks):
        place = [*POINTS].index("rows" if rank % 2 else "replicated")
        assert f"none of parameter 0 of group {place}. Nothing was changed." in found["different"]["said"]
        assert found["different"]["points"]
        assert found["different"]["again"] == ""


def test_state_is_on_the_device_of_its_parameter(ranks: list[Any]) -> None:
    """And is what it is where the mesh is on that device, too, also after it was loaded."""
    ps = {n: p for n, p in _parameters(None).items() if (n, "point") in ranks[0]["elsewhere"]}
    optimizer = RiemannianAdam(_groups(ps))
    for step in range(3):
        _give(ps, None, step)
        optimizer.step()
    for found in ranks:
        for key, value in _values(ps, optimizer).items():
            torch.testing.assert_close(found["elsewhere"][key], value, rtol=0, atol=64 * torch.finfo(DOUBLE).eps)


def test_gradients_on_several_meshes_are_clipped_together(ranks: list[Any]) -> None:
    alone = _clipped(None)
    assert alone["norm"] > 1
    for found in ranks:
        for key, value in alone.items():
            torch.testing.assert_close(found["clipped"][key], value, rtol=16 * torch.finfo(DOUBLE).eps, atol=0)


def test_a_mesh_without_this_process_is_refused_by_name(ranks: list[Any]) -> None:
    for rank, found in enumerate(ranks):
        assert ("is sharded over a mesh that this process is not on" in found["outside"]) == (rank > 1)
