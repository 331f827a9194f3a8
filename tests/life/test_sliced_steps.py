"""Steps on tall matrices cut by rows: sums of p x p matrices in place of points; on four processes and on two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accelerator.pretend import pretended
from constraints.optim import RiemannianAdam, RiemannianAdamW, RiemannianSGD
from constraints.sharding import local, whole
from manifolds import BlockSpec, Grassmann, Manifold, ProductManifold, Stiefel

from .test_fully_shard import refusal

DOUBLE = torch.float64


@dataclass(frozen=True)
class Case:
    manifold: Manifold
    shape: tuple[int, ...]
    axis: int = 0
    dtype: torch.dtype = DOUBLE


CASES = {
    "uneven, and one without rows": Case(Stiefel(), (9, 2)),
    "another of this shape": Case(Stiefel(), (9, 2)),
    "uneven": Case(Stiefel(), (7, 3)),
    "few rows": Case(Stiefel(), (3, 2)),
    "rows of a batch": Case(Stiefel(), (2, 9, 3), 1),
    "columns of a wide one": Case(Stiefel(), (3, 10), 1),
    "blocks side by side": Case(ProductManifold((Stiefel(),) * 2, BlockSpec(rows=2, axis=1)), (9, 6)),
    "wide blocks": Case(Stiefel**2, (4, 9), 1),
    "canonical": Case(Stiefel(metric="canonical"), (9, 3)),
    "canonical, wide, complex": Case(Stiefel(metric="canonical"), (3, 9), 1, torch.complex128),
    "subspaces": Case(Grassmann(), (9, 3)),
    "wide subspaces": Case(Grassmann(), (3, 9), 1),
    "complex": Case(Stiefel(), (9, 3), 0, torch.complex128),
    "float32": Case(Stiefel(), (9, 3), 0, torch.float32),
    "half precision": Case(Stiefel(), (9, 3), 0, torch.bfloat16),
}
PROCESSES = 4
OPTIMIZERS: dict[str, Any] = {
    "Adam": partial(RiemannianAdam, lr=1e-2, amsgrad=True),
    "Adam, lazy": partial(RiemannianAdam, lr=1e-2, lazy=True),
    "Adam, tensor": partial(RiemannianAdam, lr=torch.tensor(1e-2), maximize=True, second_moment="sum"),
    "AdamW": partial(RiemannianAdamW, lr=1e-2),
    "Adam, long": partial(RiemannianAdam, lr=4.0),
    "SGD": partial(RiemannianSGD, lr=1e-2),
    "momentum": partial(RiemannianSGD, lr=1e-2, momentum=0.9),
    "Nesterov": partial(RiemannianSGD, lr=1e-2, momentum=0.9, nesterov=True),
}
COUNTS = (4, 2)
STEPS = 3


def _point(name: str) -> Tensor:
    case, made = CASES[name], torch.Generator().manual_seed(1)
    dtype = torch.float32 if case.dtype == torch.bfloat16 else case.dtype
    return case.manifold.random(*case.shape, generator=made, dtype=dtype).to(case.dtype)


def _gradient(name: str, step: int) -> Tensor:
    """At the second step zero, for some."""
    case = CASES[name]
    g = torch.randn(case.shape, generator=torch.Generator().manual_seed(step), dtype=DOUBLE).to(case.dtype)
    return g * 0 if (name, step) == ("uneven", 1) else g


def _cut(name: str, mesh: Any, t: Tensor) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    return t.clone() if mesh is None else distribute_tensor(t, mesh, [Shard(CASES[name].axis)])


def _groups(ps: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [p], "manifold": CASES[name].manifold} for name, p in ps.items()]


def _parameters(mesh: Any, names: Any = CASES) -> dict[str, Any]:
    return {name: nn.Parameter(_cut(name, mesh, _point(name))) for name in names}


def _go(ps: dict[str, Any], optimizer: Any, mesh: Any, steps: range) -> None:
    for step in steps:
        for name, p in ps.items():
            p.grad = _cut(name, mesh, _gradient(name, step))
        optimizer.step()


def _stepped(kind: str, mesh: Any = None, names: Any = CASES) -> dict[Any, Tensor]:
    ps = _parameters(mesh, names)
    optimizer = OPTIMIZERS[kind](_groups(ps))
    _go(ps, optimizer, mesh, range(STEPS))
    found: dict[Any, Tensor] = {}
    for name, p in ps.items():
        found[name, "point"] = whole(p.detach()).clone()
        found.update({(name, key): whole(t).clone() for key, t in optimizer.state[p].items()})
    return found


TALL = (64, 3)


def _tall(mesh: Any, dtype: torch.dtype = torch.float32) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    x = Stiefel().random(TALL, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).to(dtype)
    return nn.Parameter(x if mesh is None else distribute_tensor(x, mesh, [Shard(0)]))


def _near_an_optimum(p: Any, mesh: Any) -> Tensor:
    """|grad|^2 as the optimizer has it, of a gradient that is normal but for one part in 1e4."""
    from torch.distributed.tensor import Shard, distribute_tensor

    x = whole(p.detach())
    generator = torch.Generator().manual_seed(1)
    slope, s = torch.randn(TALL, generator=generator), torch.randn(3, 3, generator=generator)
    g = (x.double() @ (s + s.T).double() + 1e-4 * slope.double()).to(x.dtype)
    p.grad = g if mesh is None else distribute_tensor(g, mesh, [Shard(0)])
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}], betas=(0.9, 0.0))
    optimizer.step()
    return optimizer.state[p]["exp_avg_sq"].clone()  # type: ignore[no-any-return]


def _refused(rank: int, mesh: Any) -> dict[Any, Any]:
    """What one process has is enough for all to refuse, and none has changed anything."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def given(p: Any, fill: float | None, at: int | None = None) -> None:
        p.grad = distribute_tensor(torch.ones(p.shape, dtype=p.dtype), mesh, [Shard(0)])
        if fill is not None and at in (None, rank):
            p.grad.to_local().fill_(fill)

    large = torch.finfo(torch.float32).max ** 0.5 / 4 / 192**0.5  # each quarter is fit, all of it is not
    found: dict[Any, Any] = {}
    for name, fill, at in (("nan", torch.nan, 1), ("overflow", 1.5 * large, None), ("other", None, None)):
        p, batch = _tall(mesh), nn.Parameter(distribute_tensor(Stiefel().random(4, 5, 3), mesh, [Shard(0)]))
        optimizer = RiemannianAdam([{"params": [p, batch], "manifold": Stiefel()}])
        given(p, None)
        given(batch, None)
        optimizer.step()
        before = [local(t).clone() for t in (p, batch, *optimizer.state[p].values(), *optimizer.state[batch].values())]
        given(p, fill, at)
        given(batch, torch.nan if name == "other" else None, 1)  # which only one process sees, before its slices
        found[name] = refusal(optimizer.step)
        after = [local(t) for t in (p, batch, *optimizer.state[p].values(), *optimizer.state[batch].values())]
        found[name, "unchanged"] = all(map(torch.equal, before, after))
        given(p, None)
        given(batch, None)
        optimizer.step()
        found[name, "on"] = whole(p.detach()).clone()
    for name in ("too long", "moved off", "moved"):
        p = _tall(mesh)
        group = {"params": [p], "manifold": Stiefel(), "lr": 1e-2}
        plain = RiemannianSGD([group])
        given(p, None)
        plain.step()
        if name == "too long":
            plain.param_groups[0]["lr"] = 1e9
        elif name == "moved":  # on the manifold, but not by a step
            local(p).mul_(-1)
        elif rank == 2:
            local(p).mul_(1.1)
        before = [local(p).clone()]
        found[name] = refusal(plain.step) if name != "moved" else plain.step()
        found[name, "unchanged"] = torch.equal(before[0], local(p))
    return found


def _on_an_accelerator(rank: int, mesh: Any) -> dict[Any, Any]:
    """Where nothing is looked at; then a gradient with NaN on one process, and one of an owner's."""
    from torch.distributed.tensor import Shard, distribute_tensor

    found: dict[Any, Any] = {}
    with pretended():
        found["Adam", "blind"], found["Nesterov", "blind"] = _stepped("Adam", mesh), _stepped("Nesterov", mesh)
        square = nn.Parameter(distribute_tensor(Stiefel().random(5, 5), mesh, [Shard(0)]))
        rows = {"spoiled": _tall(mesh), "fit": _tall(mesh), "spoiled square": square}
        optimizer = RiemannianAdam([{"params": [*rows.values()], "manifold": Stiefel()}])
        for bad in (False, True):
            before = {name: whole(p.detach()).clone() for name, p in rows.items()}
            for name, p in rows.items():
                p.grad = distribute_tensor(torch.ones(p.shape), mesh, [Shard(0)])
                if bad and rank == 1 and name != "fit":
                    local(p.grad).fill_(torch.nan)
            optimizer.step()
            found["blind", bad] = {name: torch.equal(before[name], whole(p.detach())) for name, p in rows.items()}
        found["skipped"] = optimizer.skipped
        found["finite"] = [bool(whole(t).isfinite().all()) for p in rows.values() for t in optimizer.state[p].values()]
    return found


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pairs", "pair"))
    meshes = {4: init_device_mesh("cpu", (4,)), 2: pairs["pair"]}
    found: dict[Any, Any] = {
        (kind, count): _stepped(kind, mesh) for kind in OPTIMIZERS for count, mesh in meshes.items()
    }
    found["optimum"] = _near_an_optimum(_tall(meshes[4]), meshes[4])
    return {**found, **_refused(rank, meshes[4]), **_on_an_accelerator(rank, meshes[4])}


@pytest.mark.timeout(320)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_on_slices_is_that_of_whole_points(kind: str, count: int, ranks: list[Any]) -> None:
    """Points and state, to rounding; alike on all processes to the bit, and of the same keys and shapes."""
    alone = _stepped(kind)
    counts = [count, "blind"] if (kind, "blind") in ranks[0] else [count]
    for rank in ranks:
        assert all(rank[kind, n].keys() == alone.keys() for n in counts)
    for (name, key), value in alone.items():
        # sums of other order, in steps that stretch them by less than 1e2 each
        eps = torch.finfo(CASES[name].dtype).eps * (1e4 if kind == "Adam, long" else 1e2)
        scale = 1 + value.abs().max().item()
        for n, rank in product(counts, ranks):
            mine = rank[kind, n][name, key]
            assert torch.equal(mine, ranks[0][kind, n][name, key])
            torch.testing.assert_close(mine, value, rtol=0, atol=eps * scale)
    for name, case in CASES.items():
        y = ranks[0][kind, count][name, "point"]
        assert (y - _point(name)).abs().max() > 1e-3
        assert case.manifold.residual(y).max() <= 16 * torch.finfo(case.dtype).eps  # of one step, whatever its length


def test_the_norm_of_a_small_gradient_keeps_its_digits(ranks: list[Any]) -> None:
    """|G|^2 less the normal part of it, 1e8 times as large, would have none in float32."""
    exact = _near_an_optimum(_tall(None, DOUBLE), None)
    for rank in ranks:
        # G itself, as float32 has it, is right to 1e4 eps of its tangent part
        assert abs(rank["optimum"] / exact - 1) <= 1e4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("case", "text"),
    [("nan", "NaN or Inf"), ("overflow", "whose square overflows"), ("other", "NaN or Inf"), ("too long", "so long")],
)
def test_what_one_process_refuses_all_do(case: str, text: str, ranks: list[Any]) -> None:
    assert any(text in rank[case] for rank in ranks)
    for rank in ranks:
        assert text in rank[case] or "another process refused this step" in rank[case]
        assert rank[case, "unchanged"]
        assert case == "too long" or torch.equal(rank[case, "on"], ranks[0]["nan", "on"])


def test_an_accelerator_leaves_on_all_processes_what_is_spoiled_on_one(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["blind", False] == {"spoiled": False, "fit": False, "spoiled square": False}
        assert rank["blind", True] == {"spoiled": True, "fit": False, "spoiled square": True}
        assert all(rank["finite"])
    # the slices on all, the square by its owner
    assert sorted(rank["skipped"] for rank in ranks) == [1, 1, 1, 2]


def test_a_slice_that_was_moved_off_is_seen_on_all(ranks: list[Any]) -> None:
    for rank in ranks:
        assert "Stiefel" in rank["moved off"]
        assert rank["moved off", "unchanged"]
        assert rank["moved"] is None
        assert not rank["moved", "unchanged"]
