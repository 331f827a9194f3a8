"""Is it right under `fully_shard` there, and what does a step on a shard cost? One process, so one device will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn

from constraints import Riemannian, Trivialization, constrain, export_state_dict
from constraints.method import Method
from constraints.optim import RiemannianAdam
from constraints.optim.step import cuts
from constraints.sharding import whole
from manifolds import Manifold, Orthogonal, Stiefel

from ..jobs import RATE
from ..timing import Builder, Contestant
from .checks import Check, Numbers, Place, require
from .fast import medians

SECTION = "sharded"
STEPS: dict[str, tuple[Manifold, tuple[int, ...], int | None, bool]] = {
    "experts, 64 x 128 x 128, Shard(0)": (Stiefel(), (64, 128, 128), 0, False),
    "four blocks of 256 x 256, Shard(0)": (Orthogonal**4, (1024, 256), 0, False),
    "1024 x 1024, Replicate": (Orthogonal(), (1024, 1024), None, False),
    "4096 x 128, Shard(0), sums": (Stiefel(), (4096, 128), 0, True),
    "1024 x 1024, Shard(0), by its owner": (Orthogonal(), (1024, 1024), 0, True),
}
"""manifold, shape, axis that is cut, and whether more processes than one would send anything."""


def checks() -> Iterator[Check]:
    for method in (Trivialization(), Riemannian()):
        yield Check(SECTION, f"recurrent model, {method}: whole and sharded", partial(trains_alike, method))
    yield Check(SECTION, "recurrent model of torch alone: whole and sharded", torch_alone)
    for name, case in STEPS.items():
        yield Check(SECTION, f"Adam step on one process, {name}", partial(step, *case))


@contextmanager
def one_process(place: Place) -> Iterator[Any]:
    """The mesh of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    begins = not distributed.is_initialized()
    if begins:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo" if place.pretended else "nccl", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh(place.device.type, (1,))
    finally:
        if begins:
            distributed.destroy_process_group()


class Net(nn.Module):
    """A recurrent matrix, a stack of maps, a tall one and a free rest."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.gru, self.out = nn.Linear(3, 16), nn.GRU(16, 12, batch_first=True), nn.Linear(12, 1)
        self.experts = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x) @ self.experts.mean(0)
        return self.out(self.gru(y)[0].mean(1))  # type: ignore[no-any-return]


def _net(method: Method | None) -> Any:
    torch.manual_seed(0)
    net = Net().double()
    if method is not None:
        constrain(net, "into.weight", Stiefel, method)
        constrain(net, "gru.weight_hh_l0", Orthogonal**3, method)
        constrain(net, "experts", Stiefel, method, init="haar")
    return net


def _trained(net: Any, method: Method | None, device: torch.device) -> dict[str, Tensor]:
    rate = 1e-2
    make: Callable[..., Any] = RiemannianAdam if isinstance(method, Riemannian) else torch.optim.Adam
    optimizer = make(net if isinstance(method, Riemannian) else net.parameters(), rate)
    for step in range(6):
        x = torch.randn(8, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)).to(device)
        optimizer.zero_grad()
        (net(x) - x.sum((1, 2))[:, None]).square().mean().backward()
        optimizer.step()
    return {key: whole(t.detach()).cpu() for key, t in export_state_dict(net).items()}


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def _three(method: Method | None, place: Place, prepare: Callable[[Any], None] = lambda net: None) -> Numbers:
    """How far apart the parameters are after six steps: of processor and device, of the whole and the sharded model."""
    from torch.distributed.fsdp import fully_shard

    with one_process(place) as mesh:
        there, sharded = _net(method).to(place.device), _net(method).to(place.device)
        prepare(sharded)
        fully_shard(sharded, mesh=mesh)
        host = _trained(_net(method), method, torch.device("cpu"))
        device = _trained(there, method, place.device)
        return {
            "processor and device": _apart(host, device),
            "whole and sharded": _apart(device, _trained(sharded, method, place.device)),
        }


def trains_alike(method: Method, place: Place) -> Numbers:
    numbers = _three(method, place)
    # Adam divides by the root of the first gradients, which magnifies their rounding where they are small
    require(max(numbers.values()) < 1e-6, f"apart by {numbers}")
    return numbers


def torch_alone(place: Place) -> Numbers:
    """What torch does to it is noted; the way round that docs/scaling.md tells is to be right."""
    numbers = _three(None, place)

    def apart(net: Any) -> None:
        net.gru.flatten_parameters = lambda: None

    round_it = _three(None, place, apart)["whole and sharded"]
    require(round_it < 1e-6, f"without flatten_parameters apart by {round_it:.1e}")
    return {**numbers, "whole and sharded, without flatten_parameters": round_it}


def step(manifold: Manifold, shape: tuple[int, ...], axis: int | None, sends: bool, place: Place) -> Numbers:
    """Medians of one step with a given gradient, sharded and not; also of what is sent, here to itself."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    size = tuple(place.size(s) for s in shape)
    point, slope = manifold.random(*size).to(place.device), torch.randn(size).to(place.device)

    def stepping(mesh: Any) -> Builder:
        def build() -> Contestant:
            placements = [Replicate() if axis is None else Shard(axis)]
            x, g = (t.clone() if mesh is None else distribute_tensor(t, mesh, placements) for t in (point, slope))
            p = nn.Parameter(x)
            p.grad = g
            optimizer = RiemannianAdam([{"params": [p], "manifold": manifold}], RATE)
            return Contestant(optimizer.step)

        return build

    # one process has every point whole; where others would not, it does what it would do beside them
    cut = mock.patch.object(cuts, "is_cut", lambda p, axis: p.placements[axis].is_shard()) if sends else nullcontext()
    with one_process(place) as mesh, cut:
        numbers = medians({"sharded": stepping(mesh), "whole": stepping(None)}, place)
    numbers["sharded / whole"] = numbers["sharded"] / numbers["whole"]
    return numbers
