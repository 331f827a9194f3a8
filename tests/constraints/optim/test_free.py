"""Unconstrained tensors move as in torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from constraints.optim import RiemannianAdam, RiemannianAdamW, RiemannianMuon, RiemannianSGD
from manifolds import Euclidean

ADAM: list[dict[str, Any]] = [
    {},
    {"lr": 0.05},
    {"lr": torch.tensor(0.05)},
    {"lr": torch.tensor(0.05, dtype=torch.float64)},
    {"betas": (0.5, 0.9)},
    {"eps": 1e-3},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"maximize": True},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.01, "betas": (0.8, 0.99)},
    {"foreach": True},
    {"fused": True},
]
DECOUPLED = [{"weight_decay": 0.1, **options} for options in ADAM]
SGD: list[dict[str, Any]] = [
    {},
    {"lr": torch.tensor(0.01)},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"momentum": 0.8, "weight_decay": 0.01, "nesterov": True, "maximize": True},
    {"foreach": True, "momentum": 0.9},
    {"fused": True, "momentum": 0.9},
]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        # one of them has no gradient now and then, and the first time late, which torch's fused SGD does not take
        if i % 3 == 0 and not optimizer.defaults.get("fused"):
            params[-1].grad = None
        optimizer.step()


def parameters(options: dict[str, Any] | None = None) -> list[nn.Parameter]:
    """Of several dtypes; torch has no fused step of complex ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = [((4, 3), torch.float32), ((5,), torch.float64), ((2, 3), torch.complex64), ((3, 2), torch.float32)]
    made = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape, dtype in shapes]
    return [p for p in made if not (p.is_complex() and (options or {}).get("fused"))]


@pytest.mark.parametrize("options", ADAM, ids=str)
def test_adam_equals_torch(options: dict[str, Any]) -> None:
    """The same parameters after 200 steps, for every option they share."""
    ours, theirs = parameters(options), parameters(options)
    run(RiemannianAdam(ours, **options), ours, 200)
    run(torch.optim.Adam(theirs, **options), theirs, 200)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, *DECOUPLED], ids=str)
def test_adamw_equals_torch(options: dict[str, Any]) -> None:
    """The same parameters after 200 steps, for every option they share; and RiemannianAdam with the decay decoupled."""
    ours, theirs, others = (parameters(options) for _ in range(3))
    run(RiemannianAdamW(ours, **options), ours, 200)
    run(torch.optim.AdamW(theirs, **options), theirs, 200)
    run(RiemannianAdam(others, **{"weight_decay": 0.01, **options}, decoupled_weight_decay=True), others, 200)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(others, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, *DECOUPLED], ids=str)
def test_adamw_on_euclidean_equals_torch(options: dict[str, Any]) -> None:
    """Decay of a point of Euclidean is that of an entry."""
    ours, theirs = ([nn.Parameter(p.to(torch.float64).detach()) for p in parameters()[:2]] for _ in range(2))
    run(RiemannianAdamW([{"params": ours, "manifold": Euclidean}], **options), ours, 200)
    run(torch.optim.AdamW(theirs, **options), theirs, 200)
    rate = options.get("lr")  # 1 - lr lambda is rounded to the dtype of lr
    bound = 1e-12 if not isinstance(rate, torch.Tensor) else 200 * torch.finfo(rate.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=max(bound, 1e-12))


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianAdamW, RiemannianSGD])
def test_ways_that_are_none_are_refused(kind: Any) -> None:
    """By name, when the optimizer is made and when a group is added."""
    with pytest.raises(ValueError, match=f"{kind.__name__} takes no differentiable=True"):
        kind(parameters(), differentiable=True)
    with pytest.raises(ValueError, match="foreach and fused"):
        kind(parameters(), foreach=True, fused=True)
    optimizer = kind(parameters()[:1])
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.add_param_group({"params": parameters()[1:], "differentiable": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_equals_torch(options: dict[str, Any]) -> None:
    """The same parameters after 200 steps, for every option they share."""
    ours, theirs = parameters(options), parameters(options)
    run(RiemannianSGD(ours, **{"lr": 0.01, **options}), ours, 200)
    run(torch.optim.SGD(theirs, **{"lr": 0.01, **options}), theirs, 200)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("options", ADAM, ids=str)
def test_adam_on_euclidean_equals_torch(options: dict[str, Any]) -> None:
    """A point of Euclidean is one entry: the batched path is Adam, entry by entry."""
    ours, theirs = ([p.to(torch.float64) for p in parameters() if not p.is_complex()] for _ in range(2))
    ours, theirs = [nn.Parameter(p.detach()) for p in ours], [nn.Parameter(p.detach()) for p in theirs]
    run(RiemannianAdam([{"params": ours, "manifold": Euclidean}], **options), ours, 200)
    run(torch.optim.Adam(theirs, **options), theirs, 200)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_on_euclidean_equals_torch(options: dict[str, Any]) -> None:
    """The batched path on Euclidean is SGD."""
    ours, theirs = ([p.to(torch.float64) for p in parameters() if not p.is_complex()] for _ in range(2))
    ours, theirs = [nn.Parameter(p.detach()) for p in ours], [nn.Parameter(p.detach()) for p in theirs]
    run(RiemannianSGD([{"params": ours, "manifold": Euclidean}], **{"lr": 0.01, **options}), ours, 200)
    run(torch.optim.SGD(theirs, **{"lr": 0.01, **options}), theirs, 200)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_sparse_gradients_of_free_tensors() -> None:
    """As torch.optim.SGD and SparseAdam do; another optimizer refuses them before anything is changed."""
    embedding = nn.Embedding(5, 3, sparse=True)
    other = nn.Parameter(torch.ones(2))
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 1])).sum().backward()
    other.grad = torch.ones(2)
    with pytest.raises(ValueError, match="sparse"):
        RiemannianMuon([other, *embedding.parameters()]).step()
    torch.testing.assert_close(other.detach(), torch.ones(2))
    RiemannianSGD(embedding.parameters(), lr=0.5).step()
    expected = before.clone()
    expected[1] -= 1.0
    torch.testing.assert_close(embedding.weight.detach(), expected)


def test_state_is_that_of_torch() -> None:
    """A state dict of torch.optim.Adam on free parameters loads, and training goes on as there."""
    ours, theirs = parameters(), parameters()
    theirs_optimizer = torch.optim.Adam(theirs, lr=0.01)
    run(theirs_optimizer, theirs, 5)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    optimizer = RiemannianAdam(ours, lr=0.5)
    saved: dict[str, Any] = theirs_optimizer.state_dict()
    copied = {"state": {k: {n: t.clone() for n, t in v.items()} for k, v in saved["state"].items()}}
    optimizer.load_state_dict({**saved, **copied})
    run(optimizer, ours, 5)
    run(theirs_optimizer, theirs, 5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
