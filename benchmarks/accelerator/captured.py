"""May a step, and a trivialized weight, be captured in a CUDA graph, or compiled?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam, RiemannianMuon, RiemannianSGD
from manifolds import Stiefel

from .checks import Check, Numbers, Place, graph_of, require
from .waiting import POINTS, SECTION, WAITING, Holder, Make

CAPTURABLE: dict[str, Make] = {
    "Adam": lambda groups: RiemannianAdam(groups, 1e-3, capturable=True),
    "SGD": lambda groups: RiemannianSGD(groups, 1e-4, momentum=0.9),  # what is not short goes by another retraction
    "Muon": lambda groups: RiemannianMuon(groups, 1e-3, capturable=True),
}


def checks() -> Iterator[Check]:
    for name in POINTS:
        if name not in WAITING:
            for which, make in CAPTURABLE.items():
                yield Check(SECTION, f"step of {which} in a CUDA graph: {name}", partial(step_captured, make, name))
            if name not in ("mixed", "packed", "FixedRank"):
                yield Check(SECTION, f"weight and gradient in a CUDA graph: {name}", partial(weight_captured, name))
    yield Check(SECTION, "a training step in a CUDA graph, Riemannian", captured)
    yield Check(SECTION, "a training step in a CUDA graph, trivialized", captured_trivialized)
    yield Check(SECTION, "torch.compile of a trivialized model", compiled)
    yield Check(SECTION, "torch.compile of a trivialized model, TF32 on", compiled_with_tf32)


class Model(nn.Module):
    """A recurrent matrix, a tall one and a free bias."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.tall = nn.Linear(32, 32, bias=False), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.square(self.tall(x)).tanh()
        return (y - 0.1).square().mean()


Run = Callable[[], object]
Points = Callable[[], list[Tensor]]


def _replays(make: Callable[[], tuple[Run, Points]], place: Place) -> Numbers:
    """Three calls and ten replays end where thirteen calls of a twin end."""
    ends = []
    for is_graph in (False, True):
        torch.manual_seed(0)
        run, points = make()
        is_graph = is_graph and not place.pretended
        run = graph_of(run, place) if is_graph else run
        for _ in range(10 if is_graph else 13):
            run()
        ends.append([x.detach().clone() for x in points()])
    each = [float((a - b).abs().max() / a.abs().max().clamp_min(1)) for a, b in zip(*ends, strict=True)]
    worst = max(each)
    require(all(off < 1e-4 for off in each), f"replays and eager steps end {worst:.1e} apart")
    return {"largest difference after 13 steps": worst}


def captured(place: Place) -> Numbers:
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel, Riemannian())
    return _replays(lambda: _training(model, lambda m: RiemannianAdam(m, 1e-3, capturable=True), place), place)


def captured_trivialized(place: Place) -> Numbers:
    # a graph that is replayed moves no base
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel, Trivialization(rebase_every=math.inf))
    on_device = not place.pretended
    return _replays(
        lambda: _training(model, lambda m: torch.optim.Adam(m.parameters(), 1e-3, capturable=on_device), place), place
    )


def _training(model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], place: Place) -> tuple[Run, Points]:
    model = copy.deepcopy(model).to(place.device)
    optimizer, x = make(model), torch.randn(16, 8).to(place.device)

    def train() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).backward()
        optimizer.step()

    return train, lambda: [value for value in model.state_dict().values() if isinstance(value, Tensor)]


def step_captured(make: Make, name: str, place: Place) -> Numbers:
    """A step alone, for every set."""
    manifold, shape = POINTS[name]
    start, g = manifold.random(*shape), torch.randn(shape).to(place.device)

    def stepping() -> tuple[Run, Points]:
        p = nn.Parameter(start.to(place.device, copy=True))
        p.grad = g.clone()
        return make([{"params": [p], "manifold": manifold}]).step, lambda: [p]

    return _replays(stepping, place)


def weight_captured(name: str, place: Place) -> Numbers:
    """A trivialized weight and its gradient alone, for every set."""
    manifold, shape = POINTS[name]
    start, g = manifold.random(*shape), torch.randn(shape).to(place.device)

    def passing() -> tuple[Run, Points]:
        holder = Holder(start.to(place.device, copy=True))
        constrain(holder, "weight", manifold, Trivialization(rebase_every=math.inf))
        (p, *_) = [p for p in holder.parameters() if p.requires_grad]
        with torch.no_grad():
            p.add_(0.1 * torch.randn(p.shape).to(place.device))
        p.grad, y = torch.zeros_like(p), torch.zeros(shape, device=place.device)

        def both() -> None:
            x = holder()
            y.copy_(x.detach())
            holder.zero_grad(set_to_none=False)
            x.backward(g)

        return both, lambda: [y, p.grad if p.grad is not None else y]

    return _replays(passing, place)


def compiled(place: Place) -> Numbers:
    """One graph, whose loss and gradients are those of eager."""
    torch.manual_seed(0)
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel).to(place.device)
    x = torch.randn(16, 8).to(place.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(x).backward()
    expected = [p.grad.clone() for p in trained if p.grad is not None]
    model.zero_grad()
    run = torch.compile(model, fullgraph=True, backend="aot_eager" if place.pretended else "inductor")
    run(x).backward()
    each = [float((p.grad - e).abs().max()) for p, e in zip(trained, expected, strict=True) if p.grad is not None]
    worst = max(each)
    require(all(off < 1e-5 for off in each), f"gradients of the compiled model are {worst:.1e} off")
    return {"largest difference of a gradient": worst}


def compiled_with_tf32(place: Place) -> Numbers:
    """The model may multiply in TF32, its weights are on their manifold to float32."""
    torch.manual_seed(0)
    model = constrain(nn.Linear(place.size(256), place.size(256)).to(place.device), "weight", Stiefel)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run = torch.compile(lambda: 1 * model.weight, backend="aot_eager" if place.pretended else "inductor")
        with torch.no_grad():
            next(p for p in model.parameters() if p.ndim == 2 and p.requires_grad).normal_(std=0.02)
        worst = float(Stiefel().residual(run().detach().double()))
    finally:
        torch.set_float32_matmul_precision(before)
    require(worst <= 1e-6, f"a compiled weight has a residual of {worst:.1e}")
    return {"residual": worst}
