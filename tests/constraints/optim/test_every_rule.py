"""Every optimizer keeps what `check_optimizer` states, and it sees one that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constraints.optim import Retracted, RiemannianAdam, RiemannianAdamW, RiemannianMuon, RiemannianSGD, spectral
from constraints.optim.step import Bucket, Group
from constraints.optim.testing import OptimizerError, check_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:weight_decay does nothing", "ignore:Complex modules")

KINDS: list[tuple[Any, Any, list[dict[str, Any]]]] = [
    (RiemannianSGD, torch.optim.SGD, [{"lr": 0.01}, {"lr": 0.01, "momentum": 0.9, "nesterov": True}]),
    (RiemannianAdam, torch.optim.Adam, [{}, {"amsgrad": True, "weight_decay": 0.1}]),
    (RiemannianAdamW, torch.optim.AdamW, [{}, {"maximize": True, "weight_decay": 0.1}]),
    (RiemannianMuon, torch.optim.AdamW, [{"weight_decay": 0.1}]),
    (lambda params, **o: Retracted(torch.optim.AdamW(params, **o)), torch.optim.AdamW, [{"lr": 0.01}]),
    (lambda params, **o: Retracted(torch.optim.SGD(params, **o)), torch.optim.SGD, [{"lr": 0.01, "momentum": 0.9}]),
    (RiemannianMuon, None, [{"scale": spectral.unit, "nesterov": False}]),
]


@pytest.mark.parametrize(("kind", "like", "options"), KINDS, ids=lambda each: getattr(each, "__name__", None))
def test_every_optimizer_conforms(kind: Any, like: Any, options: list[dict[str, Any]]) -> None:
    check_optimizer(kind, like, options)


class Straight(RiemannianSGD):
    """Adds the gradient, and leaves the manifold."""

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        return bucket.x - group["lr"] * self._descent(bucket, group)


class Forgetful(RiemannianAdam):
    """Saves no state."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


class Stacked(RiemannianSGD):
    """One length for all points of a batch."""

    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        c = bucket.engine.lift(bucket.x, self._descent(bucket, group))
        return bucket.advance(c / c.norm(), -group["lr"])


class Lenient(RiemannianSGD):
    """Takes any learning rate."""

    def _check_options(self, group: Group) -> None:
        pass


class Faster(RiemannianAdam):
    """Twice as fast as it says."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, 2 * lr)


@pytest.mark.parametrize(
    ("kind", "like", "options", "statement"),
    [
        (Straight, None, {"lr": 0.01}, "points stay on their manifolds"),
        (Forgetful, None, {}, "a run goes on from its state"),
        (Stacked, None, {"lr": 0.01}, "blocks move as if held alone"),
        (Lenient, None, {"lr": 0.01}, "lr=-1: no ValueError"),
        (Faster, torch.optim.Adam, {}, "free tensors move as in torch.optim"),
        (Faster, torch.optim.Adam, {}, "entries held as Euclidean move as in torch.optim"),
    ],
)
def test_what_does_not_conform_is_seen(kind: Any, like: Any, options: dict[str, Any], statement: str) -> None:
    with pytest.raises(OptimizerError, match=f"{kind.__name__} breaks what every") as found:
        check_optimizer(kind, like, [options])
    assert statement in str(found.value)
