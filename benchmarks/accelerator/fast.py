"""How fast is it there? Steps and maps beside plain Adam and peers; their products and the memory as limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from .. import engines, peers
from ..engines import Engine, MakeEngine
from ..jobs import RATE, Setting, gru_contestants
from ..rows import TALL_MAKERS
from ..timing import Budget, Builder, Contestant, interleave
from .checks import Check, Numbers, Place, graph_of

SECTION = "fast"
OURS, FUSED, PRODUCTS, COPY = "ours", "torch Adam, fused", "our products alone", "one copy of the matrices"
GRAPH = "ours, in a CUDA graph"

STEPS: dict[str, tuple[tuple[int, ...], int]] = {
    "1024 x 1024": ((1024, 1024), 1),
    "200,000 of 3 x 3": ((200_000, 3, 3), 1),
    "100 parameters of 64 x 64": ((64, 64), 100),
    "4096 x 256": ((4096, 256), 1),
    "200,000 of 8 x 8": ((200_000, 8, 8), 1),
    "2048 x 2048": ((2048, 2048), 1),
    "4096 x 4096": ((4096, 4096), 1),
    "512 x 512": ((512, 512), 1),
    "256 x 256": ((256, 256), 1),
    "3 x 512 x 512": ((3, 512, 512), 1),
}


def checks() -> Iterator[Check]:
    for name, (shape, count) in STEPS.items():
        yield Check(SECTION, f"Adam step, {name}", partial(step, shape, count))
    yield Check(SECTION, "GRU training step, H=512, T=50, B=32", gru)
    for name, shape, makers in (
        ("3 x 512 x 512", (3, 512, 512), _SQUARES),
        ("2048 x 128", (2048, 128), {k: TALL_MAKERS[k] for k in (OURS, "torch cayley", "torch householder")}),
    ):
        yield Check(SECTION, f"weight and its derivative, {name}", partial(weight, shape, makers))


_SQUARES: Mapping[str, MakeEngine] = {
    OURS: engines.trivialized_packed,
    "torch cayley": peers.torch_orthogonal("cayley"),
    "torch matrix_exp": peers.torch_orthogonal("matrix_exp"),
}


def fused(start: Any, lr: float) -> Engine:
    """torch.optim.Adam, fused: one kernel for all; leaves the manifold at the first step."""
    engine = engines.free(start, lr)
    on_cpu = engine.params[0].is_cpu
    optimizer = torch.optim.Adam(engine.params, lr, fused=True if not on_cpu else None)
    return Engine(engine.points, engine.kept, engine.params, optimizer)


def capturable(start: Any, lr: float) -> Engine:
    """Ours, whose step may be in a CUDA graph; on a CPU nothing is captured."""
    engine = engines.riemannian(start, lr)
    for group in engine.optimizer.param_groups:
        group["capturable"] = not engine.params[0].is_cpu
    return engine


def step(shape: tuple[int, ...], count: int, place: Place) -> Numbers:
    """Medians of one optimizer step with given gradients, all in turn; kernels and products of ours."""
    torch.manual_seed(0)
    size = tuple(place.size(s) if s > 8 else s for s in shape)
    copies = place.size(count) if count > 8 else count
    with torch.device(place.device):
        first = torch.linalg.qr(torch.randn(size)).Q.contiguous()
        start = [first.clone() for _ in range(copies)]
        slopes = [torch.randn(size) for _ in range(copies)]

    def stepping(make: MakeEngine) -> Builder:
        def build() -> Contestant:
            engine = make(start, RATE)
            torch.autograd.backward(engine.points(), slopes)
            return Contestant(engine.optimizer.step, engine.kept if count * first.numel() < 2**24 else tuple)

        return build

    builders: dict[str, Builder] = {
        OURS: stepping(engines.riemannian),
        GRAPH: lambda: _captured(stepping(capturable), place),
        FUSED: stepping(fused),
        "POGO": stepping(peers.pogo),
        **({} if _is_many(shape) else {"geoopt": stepping(peers.geoopt)}),
        PRODUCTS: lambda: _products_alone(stepping(engines.riemannian), start, place),
        COPY: lambda: _copies(start),
    }
    numbers = medians(builders, place)
    numbers.update(_counted(stepping(engines.riemannian), place))
    for other in (FUSED, PRODUCTS, "POGO", "geoopt"):
        if numbers.get(other):
            numbers[f"ours / {other}"] = numbers[OURS] / numbers[other]
    return numbers


def _captured(build: Builder, place: Place) -> Contestant:
    contestant = build()
    return Contestant(graph_of(contestant.step, place), contestant.points)


def _is_many(shape: tuple[int, ...]) -> bool:
    """Of which geoopt takes 10 s a step, that it is not waited for again."""
    return len(shape) == 3 and shape[0] > 10_000


def _products_alone(build: Builder, start: list[Tensor], place: Place) -> Contestant:
    """As many products of X and a p x p matrix as the fifth step of ours has by its floating point operations: the
    first two go the longer way."""
    contestant = build()
    for _ in range(4):
        contestant.step()
        place.wait()
    with FlopCounterMode(display=False) as counted:
        contestant.step()
    x = torch.stack(start)
    x = x.mT.contiguous() if x.shape[-2] < x.shape[-1] else x
    one = 2 * x.numel() * x.shape[-1]
    count, a = counted.get_total_flops() / one, torch.randn_like(x[..., : x.shape[-1], :])
    out, whole = torch.empty_like(x), int(count)
    part = round((count - whole) * x.shape[-2])

    def products() -> None:
        for _ in range(whole):
            torch.matmul(x, a, out=out)
        if part:
            torch.matmul(x[..., :part, :], a)

    return Contestant(products)


def _copies(start: list[Tensor]) -> Contestant:
    x = torch.stack(start)
    y = torch.empty_like(x)
    return Contestant(lambda: y.copy_(x))


def _counted(build: Builder, place: Place) -> Numbers:
    """Kernels that one step of ours launches, and its products in units of one."""
    contestant = build()
    for _ in range(3):
        contestant.step()
    activity = torch.profiler.ProfilerActivity
    which = [activity.CPU] if place.pretended else [activity.CPU, activity.CUDA]
    with torch.profiler.profile(activities=which) as seen:
        contestant.step()
        place.wait()
    cuda = DeviceType.CUDA if not place.pretended else DeviceType.CPU
    kernels = [event for event in seen.events() or () if event.device_type == cuda]
    with FlopCounterMode(display=False) as counted:
        contestant.step()
    time = sum(getattr(event, "device_time", 0.0) or 0.0 for event in kernels)
    return {"kernels": len(kernels), "microseconds in kernels": time, "flops": counted.get_total_flops()}


def gru(place: Place) -> Numbers:
    """A whole training step beside free gates."""
    setting = Setting(place.device, quick=place.pretended)
    torch.manual_seed(0)
    wanted = ("free", "ours, Riemannian", "ours, trivialized", "split-Cayley-cat by hand", "geotorch exp, cached")
    builders = {name: build for name, build in gru_contestants(setting).items() if name in wanted}
    numbers = medians(builders, place)
    for name in wanted[1:3]:
        numbers[f"{name} / free"] = numbers[name] / numbers["free"]
    return numbers


def weight(shape: tuple[int, ...], makers: Mapping[str, MakeEngine], place: Place) -> Numbers:
    """One forward and one backward pass of the map alone."""
    torch.manual_seed(0)
    size = tuple(place.size(s) if s > 8 else s for s in shape)
    with torch.device(place.device):
        start = torch.linalg.qr(torch.randn(size)).Q.contiguous()
        slope = torch.randn(size)

    def mapping(make: MakeEngine) -> Builder:
        def build() -> Contestant:
            engine = make([start], RATE)

            def both() -> None:
                engine.optimizer.zero_grad()
                engine.points()[0].backward(slope)

            return Contestant(both, engine.kept)

        return build

    numbers = medians({name: mapping(make) for name, make in makers.items()}, place)
    for name in makers:
        if name != OURS and numbers.get(name):
            numbers[f"{name} / ours"] = numbers[name] / numbers[OURS]
    return numbers


def medians(builders: Mapping[str, Builder], place: Place) -> Numbers:
    """Microseconds of one call of each, in turn; why, of who cannot; and how far off the matrices are after."""
    budget = (
        Budget(warm=2, rounds=2, seconds=0.0)
        if place.pretended
        else Budget(warm=5, rounds=15, seconds=1.5, longest=2.0)
    )
    clock: dict[str, Callable[[], float]] = {}
    outcomes = interleave(builders, budget, wait=place.wait, **clock)
    numbers: Numbers = {}
    for name, outcome in outcomes.items():
        numbers[name] = outcome.median * 1e6 if outcome.seconds else None
        if outcome.cannot:
            numbers[f"{name}: cannot"] = outcome.cannot
        if outcome.error is not None:
            numbers[f"{name}: max|QᵀQ - I|"] = outcome.error
    return numbers
