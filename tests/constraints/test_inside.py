"""Inside of transforms, traces and hooks: what torch tells of them, and that it tells it in this version."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from constraints import inside
from manifolds.kernels.transforms import is_transformed


def test_a_transform_is_seen_from_inside_and_its_tensors_anywhere() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((inside.transform_level() is not None, is_transformed(x)))
        return x.sum()

    x = torch.ones(3, 3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x)
    assert seen == [(False, False), (True, True), (True, True)]


def test_dispatch_modes_are_traces() -> None:
    assert not inside.is_traced()
    with FlopCounterMode(display=False):
        assert inside.is_traced()
    assert not inside.is_traced()


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch has no such function")
def test_a_region_that_is_recomputed_has_hooks() -> None:
    seen = []

    def region(x: Tensor) -> Tensor:
        seen.append(inside.saving_hooks())
        return x.square()

    x = torch.ones(3, requires_grad=True)
    region(x)
    checkpoint(region, x, use_reentrant=False)
    assert seen[0] is None
    assert seen[1] is not None


def test_what_torch_does_not_have_is_answered_as_in_eager_code() -> None:
    assert inside._private("_no_such.name", 7)(1, 2) == 7
