"""What is sent in a training step, in bytes, beside what docs/scaling.md states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam
from manifolds import Manifold, Orthogonal, Stiefel

COUNT = 2
ONE = 8  # bytes of a number
WORD = 4  # and of a truth that all agree on
SAME = 16  # and of the largest and the smallest of what must be equal: which parameters have gradients
# what is added up of a tall matrix of 4 columns: X^H G, X^H M and |G|^2, then Y^H Y, each less than (2p)^2 numbers
FIRST, SECOND = ONE * (2 * 4 * 4 + 1), ONE * 4 * 4
SUMS = (FIRST, SECOND)
BLIND = (FIRST, ONE, SECOND, SECOND)  # as on accelerators: |grad|^2 too, and a polish
OWNED = ONE * 8 * 8 * 5 // COUNT  # pieces of point, gradient and momentum to an owner, of point and momentum back
CASES: dict[str, tuple[Manifold, tuple[int, ...], int | None, int, tuple[int, ...]]] = {  # sent, added up
    "replicated": (Stiefel(), (12, 4), None, 0, ()),
    "experts": (Stiefel(), (4, 12, 4), 0, 0, ()),
    "blocks": (Orthogonal**4, (32, 8), 0, 0, ()),
    "rows": (Stiefel(), (12, 4), 0, 0, SUMS),
    "columns of a wide one": (Stiefel(), (4, 12), 1, 0, SUMS),
    "columns": (Orthogonal(), (8, 8), 1, OWNED, ()),
    "rows of a square": (Stiefel(), (8, 8), 0, OWNED, ()),
}


class Received(TorchDispatchMode):
    """Bytes that this process receives by collectives, by name: of what all have, all but its own part."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again with what it is made of
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if "alltoall" in name:
            self.bytes["all to all"] = self.bytes.get("all to all", 0) + _from_others(args[3])
        elif name.startswith(("c10d::", "_c10d_functional::")) and not any(word in name for word in ("wait", "wrap")):
            kind = next((each for each in ("gather", "scatter", "reduce") if each in name), name)
            # whichever is larger: of a gather the result, of a scatter what went in
            size = max(_bytes(args[0]), _bytes(args[1:2]), _bytes(out))
            self.bytes[kind] = self.bytes.get(kind, 0) + size * (COUNT - 1) // COUNT
        return out


def _from_others(sizes: list[int]) -> int:
    """Of bytes that each process sends here."""
    return sum(sizes) - sizes[distributed.get_rank()]


def _bytes(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tree) if isinstance(t, Tensor))


@contextmanager
def called(received: dict[str, int]) -> Iterator[None]:
    """The same where values are looked at, as not in a mode of torch: of the two calls that a step makes."""

    def counted(call: Any, kind: str) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            size = _from_others(args[2]) if kind == "all to all" else _bytes(args[0]) * (COUNT - 1) // COUNT
            received[kind] = received.get(kind, 0) + size
            return call(*args, **kwargs)

        return counting

    kinds = {"all_reduce": "reduce", "all_to_all_single": "all to all"}
    with mock.patch.multiple(
        distributed, **{name: counted(getattr(distributed, name), k) for name, k in kinds.items()}
    ):
        yield


def _step(name: str, mesh: Any) -> tuple[dict[str, int], dict[str, int], int]:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    manifold, shape, axis, *_ = CASES[name]

    def cut(t: Tensor) -> Any:
        return distribute_tensor(t, mesh, [Replicate() if axis is None else Shard(axis)])

    generator = torch.Generator().manual_seed(0)
    points = (manifold.random(*shape, generator=generator, dtype=torch.float64) for _ in range(COUNT))
    ps = [nn.Parameter(cut(x)) for x in points]  # as many as processes, so that each may own one
    for p in ps:
        p.grad = cut(torch.randn(shape, generator=generator, dtype=torch.float64))
    optimizer = RiemannianAdam([{"params": ps, "manifold": manifold}])
    optimizer.step()
    with Received() as blind:
        optimizer.step()
    seen: dict[str, int] = {}
    with called(seen):
        optimizer.step()
    numbers = sum(_bytes(t) for t in optimizer.state[ps[0]].values() if not hasattr(t, "to_local"))
    return blind.bytes, seen, numbers


def _pass(method: Any, mesh: Any) -> dict[str, int]:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False)).double()
    if method is not None:
        constrain(net, "0.weight", Stiefel, method)
    # each apart, so that the first is gathered again for backward
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    x = torch.ones(3, 8, dtype=torch.float64, requires_grad=True)
    net(x).sum().backward()
    with Received() as received:
        net(x).sum().backward()
    return received.bytes


def _work(rank: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (COUNT,))
    found: dict[Any, Any] = {name: _step(name, mesh) for name in CASES}
    methods = {"none": None, "Riemannian": Riemannian(), "Trivialization": Trivialization()}
    return {**found, **{("pass", name): _pass(method, mesh) for name, method in methods.items()}}


@pytest.mark.parametrize("name", CASES)
def test_a_step_receives_pieces_once_to_an_owner_and_back_or_grams_or_nothing(name: str, ranks: list[Any]) -> None:
    """Of each of two parameters; beside two numbers of 8 bytes, whether all have gradients of the same parameters, two
    of 4 bytes by which processors agree that none refuses it, and one byte, whether somebody has changed a slice."""
    _, _, _, pieces, sums = CASES[name]
    for which, added in enumerate((BLIND if sums else (), sums)):
        # they are one batch, whose Grams come together
        both = (SAME, WORD, WORD, 1, *(COUNT * size for size in added))
        expected = {"reduce": sum(size * (COUNT - 1) // COUNT for size in both)}
        for rank in ranks:
            back = {"all to all": pieces + rank[name][2]} if pieces else {}  # of one, with the numbers of its state
            assert rank[name][which] == expected | back


def test_a_trivialized_pass_receives_its_base_too(ranks: list[Any]) -> None:
    """Once in forward and once in backward; what is reduced is that of a plain one, as a Riemannian pass is in all."""
    more = 2 * 8 * 8 * ONE * (COUNT - 1) // COUNT
    for rank in ranks:
        plain = rank["pass", "none"]
        assert rank["pass", "Riemannian"] == plain
        assert plain["gather"] > 0
        assert rank["pass", "Trivialization"] == {**plain, "gather": plain["gather"] + more}
