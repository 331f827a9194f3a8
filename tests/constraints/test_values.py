"""Checksums of tensors, and starts on another device than the default one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain
from constraints.method import Method
from constraints.values import checksum, is_near
from manifolds import (
    Euclidean,
    Manifold,
    NearestPointManifold,
    Orthogonal,
    SpecialOrthogonal,
    Stiefel,
)
from manifolds.compositions import Composition, LowRank
from tests.sets import EVERY

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checksum_sees_writes(dtype: torch.dtype) -> None:
    x = torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    before = checksum(x)
    assert checksum(x.clone()) == before
    assert checksum(-x) != before
    assert checksum(x / 2) != before
    assert checksum(0 * x) != before


def test_a_checksum_tells_the_order_of_its_sum(threads: Callable[[int], None]) -> None:
    """Sums of one value differ by rounding where the order does, and then nothing follows."""
    x = torch.randn(700, 700, generator=torch.Generator().manual_seed(0))
    threads(2)
    one = checksum(x)
    assert checksum(x) == one
    assert checksum(x.mT).order != one.order
    threads(1)
    assert checksum(x).order != one.order


def test_a_trivialized_weight_is_read_under_any_number_of_threads(threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    layer = constrain(nn.Linear(700, 700), "weight", Stiefel, init="haar")
    for count in (4, 1, 3, 2, 1):
        threads(count)
        assert layer.weight.shape == (700, 700)
    layer.weight.data.neg_()
    with pytest.raises(ValueError, match="changed in place"):
        layer(torch.ones(700))


@dataclass(frozen=True)
class BySvd(NearestPointManifold):
    """A set of the user's own, whose nearest point raises where a decomposition does not end."""

    ndim = 2

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return Orthogonal().project(x, a)

    def nearest(self, x: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(x)
        return u @ vh

    def dim(self, shape: Sequence[int]) -> int:
        return Orthogonal().dim(shape)


FINITE: list[Manifold] = [BySvd(), *EVERY, Stiefel() * Euclidean()]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("manifold", FINITE, ids=str)
def test_what_is_not_finite_is_near_no_manifold(manifold: Manifold, bad: float) -> None:
    """By the residual alone, at any entry, as a point of several."""
    shape = (4, 2) if len(getattr(manifold, "factors", ())) == 2 else (2, 2)
    x = manifold.random(3, *shape) if manifold.ndim == 2 and shape == (2, 2) else manifold.random(*shape)
    assert is_near(manifold, x, x.dtype)
    for i in range(x.numel()):
        y = x.clone()
        y.view(-1)[i] = bad
        assert not is_near(manifold, y, x.dtype)


@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)
@pytest.mark.parametrize("init", ["haar", "identity", "torus", None])
@pytest.mark.parametrize("manifold", [Stiefel(), Orthogonal(), SpecialOrthogonal()], ids=repr)
def test_a_start_is_on_the_device_of_the_tensor(manifold: Stiefel, init: object, method: Method) -> None:
    layer = nn.Linear(5, 5)
    nn.init.eye_(layer.weight)
    with torch.device("meta"):  # as torch.set_default_device does
        constrain(layer, "weight", manifold, method, init=init)  # type: ignore[arg-type]
    assert layer.weight.device.type == "cpu"
    assert bool(manifold.contains(layer.weight).all())


@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel() ** 2, LowRank(2)], ids=str)
def test_an_error_of_the_init_function_arrives_as_it_is(manifold: Manifold | Composition) -> None:
    layer = nn.Linear(4, 8)
    before = layer.weight.detach().clone()
    with pytest.raises(json.JSONDecodeError) as caught:
        constrain(layer, "weight", manifold, init=lambda w: json.loads("{"))
    assert caught.value.pos == 1
    with pytest.raises(ValueError, match=r"weight of Linear.*: mine$"):  # a plain one tells whose it is
        constrain(layer, "weight", manifold, init=raises)
    assert torch.equal(layer.weight, before)


def raises(w: Tensor) -> Tensor:
    raise ValueError("mine")
