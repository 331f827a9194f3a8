"""Saved state of other optimizers, state of another shape, and counters that are nobody else's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constraints.optim import (
    Retracted,
    RiemannianAdam,
    RiemannianAdamW,
    RiemannianLBFGS,
    RiemannianMuon,
    RiemannianSGD,
)
from manifolds import Euclidean, Sphere, Stiefel

pytestmark = pytest.mark.filterwarnings("ignore:weight_decay does nothing")

KINDS: dict[str, Callable[..., Optimizer]] = {
    "adam": RiemannianAdam,
    "sgd": lambda groups: RiemannianSGD(groups, momentum=0.9),
    "muon": RiemannianMuon,
    "lbfgs": RiemannianLBFGS,
    "retracted adam": lambda groups: Retracted(torch.optim.Adam(groups)),
    "retracted sgd": lambda groups: Retracted(torch.optim.SGD(groups, momentum=0.9)),
    "retracted as it is": lambda groups: Retracted(torch.optim.SGD(groups, momentum=0.9), carry=False),
}
FREE: dict[str, Callable[..., Optimizer]] = {
    "torch sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    **({"torch muon": torch.optim.Muon} if hasattr(torch.optim, "Muon") else {}),  # from 2.9 on
}


def held(shape: tuple[int, ...] = (6, 6)) -> tuple[nn.Parameter, list[dict[str, Any]]]:
    p = nn.Parameter(Stiefel().random(*shape, generator=torch.Generator().manual_seed(0)))
    return p, [{"params": [p], "manifold": Stiefel()}]


def step(optimizer: Any, p: nn.Parameter, seed: int = 0) -> None:
    g = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))

    def closure() -> Tensor:
        p.grad = g.clone()
        return (g * p.detach()).sum()

    closure()
    optimizer.step(closure) if isinstance(optimizer, RiemannianLBFGS) else optimizer.step()


@pytest.mark.parametrize(("saved", "mine"), list(itertools.permutations(KINDS, 2)))
def test_state_of_another_kind_is_refused(saved: str, mine: str) -> None:
    """Before anything changes; a momentum in other coordinates would be taken for one of its own."""
    p, groups = held()
    other = KINDS[saved](groups)
    step(other, p)
    q, groups = held()
    optimizer = KINDS[mine](groups)
    step(optimizer, q)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"the saved state|of the saved state"):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert after["param_groups"] == before["param_groups"]


@pytest.mark.parametrize(
    ("saved", "mine"),
    [each for each in (("torch sgd", "adam"), ("torch muon", "sgd"), ("torch muon", "muon")) if each[0] in FREE],
)
def test_state_of_another_kind_of_torch_is_refused(saved: str, mine: str) -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    other = FREE[saved]([p])
    step(other, p)
    with pytest.raises(ValueError, match="is of another optimizer than"):
        KINDS[mine]([q]).load_state_dict(other.state_dict())


def test_state_of_the_same_kind_is_taken() -> None:
    """AdamW goes on from Adam, and both from those of torch; scheduled groups and those with names of a user's own."""
    for kind, other in itertools.product((RiemannianAdam, RiemannianAdamW), (torch.optim.Adam, torch.optim.AdamW)):
        p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        theirs = other([{"params": [p], "of": "head"}])
        torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=5)
        step(theirs, p)
        ours = kind([{"params": [q], "of": "tail"}])
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours.state[q]["exp_avg"], theirs.state[p]["exp_avg"])
        assert ours.param_groups[0]["lazy"] is False


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lbfgs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_of_another_shape_is_refused_in_a_step(kind: str, dtype: torch.dtype) -> None:
    """By name, with nothing changed; and the way out that it says leads on."""
    p, groups = held((4, 6, 6))
    optimizer = KINDS[kind](groups)
    step(optimizer, p)
    count = 3 if dtype == torch.float32 else 4
    p.data = Stiefel().random(count, 6, 6, dtype=dtype)
    p.grad = torch.randn(count, 6, 6, dtype=dtype)
    before = p.detach().clone()
    if dtype == torch.float32 or kind.startswith("retracted"):
        way = r"state\.pop\(parameter\)" if dtype == torch.float32 else r"load_state_dict\(optimizer\.state_dict\(\)\)"
        with pytest.raises(ValueError, match=f"parameter 0 of group 0 has the shape .*{way}"):
            optimizer.step()
        assert torch.equal(p.detach(), before)
        if dtype == torch.float32:
            optimizer.state.pop(p)
        else:
            optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()  # ours follows a weight to another dtype
    assert not torch.equal(p.detach(), before)
    assert Stiefel().residual(p.detach()).max() < 1e-5


@pytest.mark.parametrize("manifold", [None, Sphere(), Euclidean()], ids=str)
def test_a_table_counts_its_own_steps(manifold: Any) -> None:
    """Dense together, then one by a sparse gradient and the other not at all: 3 steps and 1."""
    p, q = (nn.Parameter(Sphere().random(6, 3, generator=torch.Generator().manual_seed(k))) for k in range(2))
    optimizer = RiemannianAdam([{"params": [p, q], "manifold": manifold}])
    p.grad, q.grad = torch.ones(6, 3), torch.ones(6, 3)
    optimizer.step()
    q.grad = None
    for rows in (2, 0):
        p.grad = torch.sparse_coo_tensor(torch.arange(rows)[None], torch.ones(rows, 3), (6, 3), check_invariants=True)
        optimizer.step()
    assert float(optimizer.state[p]["step"]) == 3
    assert float(optimizer.state[q]["step"]) == 1


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianMuon])
def test_capturable_on_a_processor_is_no_other_step(kind: Any) -> None:
    """Free tensors too, which torch would refuse in the step, when moments have moved."""
    ends = []
    for capturable in (False, True):
        p, groups = held()
        free = nn.Parameter(torch.ones(3))
        optimizer = kind([*groups, {"params": [free]}], capturable=capturable)
        for seed in range(3):
            free.grad = torch.full((3,), float(seed))
            step(optimizer, p, seed)
        ends.append((p.detach(), free.detach()))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


def test_ways_that_torch_refuses_in_a_step_are_refused_at_once() -> None:
    odd = [nn.Parameter(torch.ones(2, dtype=torch.complex64))]
    for kind in (RiemannianAdam, RiemannianAdamW, RiemannianSGD):
        with pytest.raises(ValueError, match="takes real free tensors"):
            kind(odd, fused=True)
    with pytest.raises(ValueError, match="takes a float as lr"):
        RiemannianAdam(odd, lr=torch.tensor(0.1), foreach=True)
