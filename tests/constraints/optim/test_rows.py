"""Steps that move some points and leave the others as they are: sparse gradients, and `lazy`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from constraints import Riemannian, constrain, report
from constraints.optim import Retracted, RiemannianAdam, RiemannianAdamW, RiemannianMuon, RiemannianSGD
from constraints.optim.step import bucket
from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    Oblique,
    Orthogonal,
    PoincareBall,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

PAIRS = ProductManifold((Sphere, Sphere), BlockSpec(rows=2, axis=-1))
ROWS: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    "sphere": (Sphere(), (7, 4)),
    "ball": (PoincareBall(), (7, 4)),
    "two in a row": (PAIRS, (7, 4)),
    "row and entries": (ProductManifold((Sphere, Euclidean), BlockSpec(rows=2, axis=-1)), (7, 4)),
    "matrices": (SpecialOrthogonal(), (7, 3, 3)),
    "frames": (Stiefel(), (7, 4, 2)),
    "euclidean": (Euclidean(), (7, 4)),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda g, **o: RiemannianSGD(g, lr=0.1, **o),
    "momentum": lambda g, **o: RiemannianSGD(g, lr=0.1, momentum=0.9, **o),
    "nesterov": lambda g, **o: RiemannianSGD(g, lr=0.1, momentum=0.9, nesterov=True, **o),
    "adam": lambda g, **o: RiemannianAdam(g, lr=0.1, **o),
    "amsgrad": lambda g, **o: RiemannianAdam(g, lr=0.1, amsgrad=True, **o),
    "adamw": lambda g, **o: RiemannianAdamW(g, lr=0.1, **o),
}


def table(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(manifold.random(shape, generator=torch.Generator().manual_seed(0), dtype=dtype))


def give(p: nn.Parameter, step: int, sparse: bool) -> Tensor:
    """A gradient on some rows, twice on one of them; which rows those are."""
    generator = torch.Generator().manual_seed(step)
    index = torch.randperm(len(p), generator=generator)[:3]
    values = torch.randn((3, *p.shape[1:]), generator=generator, dtype=p.dtype)
    both = torch.sparse_coo_tensor(
        torch.cat([index, index[:1]])[None], torch.cat([values, values[:1]]), p.shape, check_invariants=True
    )
    p.grad = both if sparse else both.to_dense()
    return index


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("held", ROWS)
def test_sparse_is_lazy(held: str, kind: str) -> None:
    """A sparse gradient moves its rows as the dense one does with lazy; others stay bit for bit, moments too."""
    manifold, shape = ROWS[held]
    p, q = table(manifold, shape), table(manifold, shape)
    ours = OPTIMIZERS[kind]([{"params": [p], "manifold": manifold}])
    lazy = OPTIMIZERS[kind]([{"params": [q], "manifold": manifold}], lazy=True)
    for step in range(6):
        before, moments = p.detach().clone(), {key: value.clone() for key, value in ours.state[p].items()}
        index = give(p, step, sparse=True)
        give(q, step, sparse=False)
        ours.step()
        lazy.step()
        others = torch.ones(len(p), dtype=torch.bool).index_fill_(0, index, False)
        for each in (p, q):
            assert torch.equal(each.detach()[others], before[others]) or each is q
        for key in moments.keys() - {"step"}:
            assert torch.equal(ours.state[p][key][others], moments[key][others])
        assert not torch.equal(p.detach()[index], before[index])
    torch.testing.assert_close(q.detach(), p.detach(), rtol=1e-12, atol=1e-13)
    assert manifold.residual(p.detach()).max() < 1e-14


@pytest.mark.parametrize("manifold", [None, Euclidean()])
@pytest.mark.parametrize("maximize", [False, True])
def test_adam_of_a_table_is_sparse_adam(manifold: Any, maximize: bool) -> None:
    """Free, or on Euclidean: the same numbers after 100 steps. eps is added to a root that differs by a correction."""
    ours, theirs = table(Euclidean(), (9, 4)), table(Euclidean(), (9, 4))
    adam = RiemannianAdam([{"params": [ours], "manifold": manifold}], lr=0.05, eps=1e-25, maximize=maximize)
    sparse = torch.optim.SparseAdam([theirs], lr=0.05, eps=1e-25, maximize=maximize)
    for step in range(100):
        give(ours, step, sparse=True)
        give(theirs, step, sparse=True)
        adam.step()
        sparse.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-12)
    assert adam.state[ours]["step"] == sparse.state[theirs]["step"]
    torch.testing.assert_close(adam.state[ours]["exp_avg_sq"], sparse.state[theirs]["exp_avg_sq"])


class Written(TorchDispatchMode):
    """The largest tensor that an operation makes or writes as a whole."""

    VIEWS = ("aten.detach", "aten.alias", "aten.view", "aten.index_copy_", "aten.unsqueeze", "aten.t.")

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, Tensor) and not each.is_sparse and not str(func).startswith(self.VIEWS):
                self.largest = max(self.largest, each.numel())
        return out


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_step_costs_what_its_rows_cost(kind: str) -> None:
    """No operation makes or reads through a table of 100,000 x 8: of three rows, none is of more than their entries."""
    net = constrain(nn.Embedding(100_000, 8, sparse=True), "weight", Sphere, Riemannian(), init="haar")
    optimizer = OPTIMIZERS[kind](net)
    for step in range(3):
        optimizer.zero_grad()
        net(torch.tensor([5, 17, step])).square().sum().backward()
        with Written() as seen:
            optimizer.step()
        assert seen.largest <= 3 * 8 or step == 0  # the first one makes the state
    with Written() as seen:
        net.weight.detach().clone()
    assert seen.largest == 800_000
    assert report(net)[0].ok


def test_tables_train_in_a_model_and_from_saved_state() -> None:
    """Beside dense parameters, in half precision too, with rows that come late; bit for bit from the state."""

    def build(dtype: torch.dtype) -> tuple[nn.Sequential, RiemannianAdam]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.EmbeddingBag(8, 4, sparse=True, mode="sum"), nn.Linear(4, 4))
        constrain(net, "0.weight", Sphere, Riemannian(), init="haar")
        constrain(net, "1.weight", Orthogonal, Riemannian())
        net.to(dtype)
        return net, RiemannianAdam(net, lr=0.05, eps=1e-6)

    def train(net: nn.Sequential, optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            net(torch.tensor([[step % 8, (3 * step) % 8]])).square().sum().backward()
            optimizer.step()

    for dtype in (torch.float32, torch.bfloat16):
        net, optimizer = build(dtype)
        train(net, optimizer, 0, 4)
        plan = optimizer._plan
        train(net, optimizer, 4, 5)
        assert optimizer._plan is plan
        again, other = build(dtype)
        again.load_state_dict(net.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(net, optimizer, 5, 10)
        train(again, other, 5, 10)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
        assert all(record.ok for record in report(net))


def test_dense_and_sparse_gradients_in_turn() -> None:
    """One state for both."""
    p = table(Sphere(), (7, 4))
    optimizer = RiemannianAdam([{"params": [p], "manifold": Sphere}], lr=0.1)
    for step in range(6):
        give(p, step, sparse=step % 2 == 1)
        optimizer.step()
    assert optimizer.state[p]["step"] == 6
    assert Sphere().contains(p.detach()).all()


def test_no_rows_at_all() -> None:
    p = table(Sphere(), (7, 4))
    optimizer = RiemannianAdam([{"params": [p], "manifold": Sphere}], lr=0.1)
    before = p.detach().clone()
    p.grad = torch.sparse_coo_tensor(
        torch.zeros((1, 0), dtype=torch.long), torch.zeros((0, 4), dtype=p.dtype), (7, 4), check_invariants=True
    )
    optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_what_is_no_row_is_refused(kind: str) -> None:
    """By name, with what to write, before anything changes."""
    p, q, r = table(Stiefel(), (7, 4)), table(Oblique(axis=-1), (7, 4)), table(Sphere(), (7, 4))
    for each, manifold, way in (
        (p, Stiefel(), r"no points of Stiefel\. Nothing was changed\. Make its layer with sparse=False\.$"),
        (q, Oblique(axis=-1), r"Hold it on Sphere, whose points are rows, or make its layer with sparse=False\.$"),
    ):
        before = each.detach().clone()
        give(each, 0, sparse=True)
        with pytest.raises(ValueError, match=way):
            OPTIMIZERS[kind]([{"params": [each], "manifold": manifold}]).step()
        assert torch.equal(each.detach(), before)
    give(r, 0, sparse=True)
    r.grad = r.grad.to_dense().to_sparse()  # entry by entry
    with pytest.raises(ValueError, match="no points of Sphere"):
        OPTIMIZERS[kind]([{"params": [r], "manifold": Sphere()}]).step()


def test_a_bad_row_changes_nothing() -> None:
    net = constrain(nn.Embedding(6, 3, sparse=True), "weight", Sphere, Riemannian())
    optimizer = RiemannianAdam(net, lr=0.1)
    net(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    before, state = net.weight.detach().clone(), optimizer.state_dict()
    net.weight.grad = net.weight.grad * float("nan")
    with pytest.raises(ValueError, match=r"gradient of weight, shape \(6, 3\), has NaN"):
        optimizer.step()
    assert torch.equal(net.weight.detach(), before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    with pytest.raises(ValueError, match="sparse layout"):
        RiemannianMuon(net).step()


# Stacks of points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("count", [12, 2048])
@pytest.mark.parametrize("manifold", [SpecialOrthogonal(), Stiefel(), Sphere()], ids=str)
def test_poses_without_a_gradient_stay(manifold: Manifold, count: int, kind: str) -> None:
    """Bit for bit, with their moments, whatever the momentum; the others are on the manifold to rounding."""
    p = table(manifold, (count, 3, 3), torch.float32)
    optimizer = OPTIMIZERS[kind]([{"params": [p], "manifold": manifold}], lazy=True)
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        seen = torch.rand(count, generator=generator) < 0.5
        p.grad = torch.randn(p.shape, generator=generator) * seen.view(-1, 1, 1)
        before = p.detach().clone()
        optimizer.step()
        assert torch.equal(p.detach()[~seen], before[~seen])
        assert not (p.detach()[seen] == before[seen]).all((1, 2)).any()
    assert manifold.residual(p.detach()).max() <= 16 * torch.finfo(p.dtype).eps
    assert optimizer.skipped == 0


def test_poses_where_looking_would_stall(monkeypatch: Any) -> None:
    """As on an accelerator: what has no gradient stays, what has a bad one stays too and alone is counted."""
    monkeypatch.setattr(bucket, "can_look", lambda device: False)
    p = table(Stiefel(), (6, 3, 3), torch.float32)
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1, lazy=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    p.grad[1:3], p.grad[4] = 0, float("nan")
    optimizer.step()
    assert (p.detach() == before).all((1, 2)).tolist() == [False, True, True, False, True, False]
    assert optimizer.skipped == 1


def test_poses_move_on_without_the_option() -> None:
    p = table(SpecialOrthogonal(), (12, 3, 3))
    optimizer = RiemannianAdam([{"params": [p], "manifold": SpecialOrthogonal()}], lr=0.1)
    give(p, 0, sparse=False)
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not torch.equal(p.detach(), before)


def test_gates_and_entries_without_a_gradient_stay() -> None:
    """A point is a factor of a packed weight, where it is packed."""
    manifold = Stiefel * Euclidean**2
    p = table(manifold, (12, 4))
    optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], lr=0.1, lazy=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    p.grad[:4], p.grad[5] = 0, 0
    optimizer.step()
    same = (p.detach() == before).all(1)
    assert same.tolist() == [True] * 4 + [False, True] + [False] * 6


def test_retracted_says_who_moves_rows() -> None:
    p = table(Sphere(), (7, 4))
    give(p, 0, sparse=True)
    with pytest.raises(ValueError, match="RiemannianAdam, which moves the rows it touches"):
        Retracted(torch.optim.SGD([{"params": [p], "manifold": Sphere()}])).step()
