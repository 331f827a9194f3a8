"""Steps on many tiny matrices, which are kept batch last in memory, equal steps on few of them."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step import bucket, rows
from manifolds import Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel, retractions
from manifolds.engine import engine

COUNT = 700
TILES = 7
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": lambda groups: RiemannianAdam(groups, lr=0.05, amsgrad=True),
    "sgd": lambda groups: RiemannianSGD(groups, lr=0.05, momentum=0.9),
    "plain sgd": lambda groups: RiemannianSGD(groups, lr=0.05),
}
MANIFOLDS: list[Manifold] = [
    Stiefel(),
    Stiefel(metric="canonical", retraction=retractions.cayley),
    Stiefel(retraction=retractions.exp),
    Orthogonal(),
    Sphere(),
]


@pytest.fixture(params=[1, TILES], ids=["one tile", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Into how many tiles all points are cut, which else depends on the number of threads."""
    monkeypatch.setattr(rows, "tiles", lambda count: request.param if count % request.param == 0 else 1)
    return int(request.param)


def gradient(x: Tensor, step: int) -> Tensor:
    """That of no function: any gradient will do that is not zero on the manifold."""
    n = x.shape[-1]
    turn = torch.arange(n * n, dtype=x.dtype.to_real()).reshape(n, n).sin().to(x.dtype)
    return (x.detach() @ turn * step).contiguous()


def trained(make: Callable[..., Any], manifold: Manifold, parts: list[Tensor], steps: int = 12) -> Tensor:
    """All points after some steps, when these parts are parameters of one optimizer each."""
    after = []
    for part in parts:
        p = nn.Parameter(part.clone())
        optimizer = make([{"params": [p], "manifold": manifold}])
        for k in range(steps):
            p.grad = gradient(p, k + 1)
            optimizer.step()
        after.append(p.detach())
    return torch.cat(after)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_many_matrices_move_as_few_do(name: str, manifold: Manifold, n: int, dtype: torch.dtype, tiles: int) -> None:
    torch.manual_seed(n)
    x = manifold.random(COUNT, n, n, dtype=dtype)
    many = trained(OPTIMIZERS[name], manifold, [x])
    few = trained(OPTIMIZERS[name], manifold, list(x.split(100)))
    torch.testing.assert_close(many, few, rtol=0, atol=1e-11)
    assert many.is_contiguous()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_of_every_layout_share_one_batch(name: str) -> None:
    """A stack, rows of a larger tensor, single matrices: each keeps its own memory."""
    torch.manual_seed(0)
    x = Stiefel().random(COUNT, 3, 3, dtype=torch.float64)
    whole = nn.Parameter(x[:400].clone())
    batched = nn.Parameter(x[400:600].reshape(10, 20, 3, 3).clone())
    packed = nn.Parameter(x[600:690].reshape(270, 3).clone())
    singles = [nn.Parameter(one.clone()) for one in x[690:]]
    optimizer = OPTIMIZERS[name](
        [
            {"params": [whole, batched, *singles], "manifold": Stiefel()},
            {"params": [packed], "manifold": Stiefel() ** 90},
        ]
    )
    expected = trained(OPTIMIZERS[name], Stiefel(), [x[:100]])
    for k in range(12):
        for p in (whole, batched, *singles):
            p.grad = gradient(p, k + 1)
        packed.grad = gradient(packed, k + 1)
        optimizer.step()
    torch.testing.assert_close(whole[:100].detach(), expected, rtol=0, atol=1e-11)
    together = torch.cat([whole, batched.reshape(-1, 3, 3), packed.reshape(-1, 3, 3), torch.stack(singles)])
    torch.testing.assert_close(
        together.detach(), trained(OPTIMIZERS[name], Stiefel(), list(x.split(100))), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_step_knows_what_the_last_one_wrote(
    name: str, dtype: torch.dtype, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the sum of the same numbers in the same order: points are measured only where somebody wrote to them."""
    p = nn.Parameter(Stiefel().random(2, COUNT // 2, 3, 3, dtype=dtype))
    optimizer = OPTIMIZERS[name]([{"params": [p], "manifold": Stiefel()}])
    for k in range(2):
        p.grad = gradient(p, k + 1)
        optimizer.step()
    (only,) = optimizer._plan.buckets
    assert dtype.is_complex or only._held.count == tiles
    measured: list[Tensor] = []
    near = bucket.is_near
    monkeypatch.setattr(bucket, "is_near", lambda manifold, x, *a: measured.append(x) or near(manifold, x, *a))
    optimizer.step()
    assert not measured
    p.data[1, 17] = -p.data[1, 17]
    optimizer.step()
    assert len(measured) == 1
    p.data[1, 17] += 1e-2
    before = p.detach().clone()
    with pytest.raises(ValueError, match="was changed to a value that is not on Stiefel"):
        optimizer.step()
    assert torch.equal(p, before)


def across(x: Tensor, v: Tensor) -> Tensor:
    """Cayley, with the columns of the result next to each other in memory."""
    return retractions.cayley(x, v).mT.contiguous().mT


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(9, 9), (4, 9, 9), (600, 3, 3)], ids=str)
def test_a_step_knows_what_it_wrote_also_where_points_come_in_another_order(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of the same numbers in another order is another one; it is not taken for what somebody else wrote."""
    manifold = Stiefel(retraction=across)
    p = nn.Parameter(manifold.random(*shape))
    optimizer = OPTIMIZERS[name]([{"params": [p], "manifold": manifold}])
    p.grad = gradient(p, 1)
    optimizer.step()  # looks at every point
    measured: list[Tensor] = []
    monkeypatch.setattr(bucket, "is_near", lambda manifold, x, *a: measured.append(x) or True)
    for k in range(8):
        p.grad = gradient(p, k + 2)
        optimizer.step()
    assert not measured


def limited(x: Tensor, v: Tensor) -> Tensor:
    """A retraction of no step longer than 0.05 for each point of a batch with one axis."""
    lengths = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return retractions.cayley(x, v * (0.05 / lengths).clamp(max=1).view(-1, 1, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [Orthogonal, Stiefel, SpecialOrthogonal])
def test_a_user_s_retraction_of_tiny_matrices_is_given_one_batch_axis(name: str, kind: Any) -> None:
    manifold = kind(retraction=limited)
    x = manifold.random(COUNT, 3, 3, dtype=torch.float64)
    many = trained(OPTIMIZERS[name], manifold, [x], steps=3)
    few = trained(OPTIMIZERS[name], manifold, list(x.split(100)), steps=3)
    torch.testing.assert_close(many, few, rtol=0, atol=1e-11)


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="gradients have the dtype of their tensors")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("n", [3, 5])
def test_gradients_of_another_dtype_are_taken(name: str, n: int) -> None:
    x = Orthogonal().random(COUNT, n, n)
    p, q = nn.Parameter(x.clone()), nn.Parameter(x.clone())
    p.grad_dtype = torch.float64
    p.grad = gradient(x, 1).double()
    q.grad = gradient(x, 1)
    for each in (p, q):
        optimizer = OPTIMIZERS[name]([{"params": [each], "manifold": Orthogonal()}])
        optimizer.step()
        optimizer.step()
        assert {v.dtype for k, v in optimizer.state[each].items() if v.shape == each.shape} <= {torch.float32}
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_gathered_of_gradients_is_free_memory_when_points_move(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = nn.Parameter(Orthogonal().random(COUNT, 3, 3))
    p.grad = torch.randn_like(p)
    gathered: list[Any] = []
    read, advance = bucket.Bucket.read_gradients, bucket.Bucket.advance

    def reading(self: bucket.Bucket, cut: Any) -> None:
        read(self, cut)
        gathered.append(weakref.ref(self.g))

    def moving(self: bucket.Bucket, *args: Any) -> Tensor:
        assert gathered[-1]() is None
        return advance(self, *args)

    monkeypatch.setattr(bucket.Bucket, "read_gradients", reading)
    monkeypatch.setattr(bucket.Bucket, "advance", moving)
    optimizer = OPTIMIZERS[name]([{"params": [p], "manifold": Orthogonal()}])
    for _ in range(3):
        optimizer.step()
    assert len(gathered) == 3


def test_a_user_s_manifold_of_tiny_matrices_is_given_one_batch_axis() -> None:
    """`mix` and `advance` promise nothing of more."""

    class Mine(Orthogonal):
        def advance(self, x: Tensor, c: Tensor, size: float | Tensor) -> Tensor:
            assert x.shape == c.shape == (COUNT, 3, 3)
            return engine(Orthogonal()).advance(x, c, size)

    p = nn.Parameter(Mine().random(COUNT, 3, 3))
    p.grad = torch.randn_like(p)
    RiemannianAdam([{"params": [p], "manifold": Mine()}], lr=0.1).step()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_training_goes_on_from_a_file(name: str, tiles: int) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(Orthogonal().random(COUNT, 3, 3))
    optimizer = OPTIMIZERS[name]([{"params": [p], "manifold": Orthogonal()}])
    p.grad = torch.randn_like(p)
    for _ in range(3):
        optimizer.step()
    for value in optimizer.state[p].values():
        assert value.shape in ((), (COUNT,), p.shape)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    q = nn.Parameter(p.detach().clone())
    q.grad = p.grad.clone()
    other = OPTIMIZERS[name]([{"params": [q], "manifold": Orthogonal()}])
    other.load_state_dict(torch.load(file, weights_only=True))
    again = copy.deepcopy(other)
    (r,) = again.param_groups[0]["params"]
    r.grad = p.grad.clone()
    for _ in range(5):
        optimizer.step()
        other.step()
    assert torch.equal(p, q)
    assert not torch.equal(p, r)
    for _ in range(5):
        again.step()
    assert torch.equal(p, r)
