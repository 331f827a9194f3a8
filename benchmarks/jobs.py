"""The jobs: optimizer steps, trivializations and training steps, of any size, each with all who can do it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from manifolds import Stiefel
from manifolds.kernels.determinant import determinant_phase

from . import engines, peers, recurrent
from .engines import Engine, MakeEngine
from .guarded import memory_of
from .reasons import REASONS
from .results import RowResult, Target, Verdict
from .timing import Budget, Builder, Contestant, Outcome, interleave

OURS, TRIVIALIZED, PRODUCT = "ours", "ours, trivialized", "one product (u)"
RATE = 1e-3


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """Where and how large. quick: every size divided by 8, for trying out; its numbers say nothing."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    quick: bool = False
    clock: Callable[[], float] = time.perf_counter

    def size(self, full: int) -> int:
        return max(4, full // 8) if self.quick else full

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def point(self, *shape: int) -> Tensor:
        """Haar random; of square ones each has determinant 1, which geotorch needs."""
        x = Stiefel().random(*shape, dtype=torch.float64)
        if shape[-1] == shape[-2]:
            batch = x.view(-1, *shape[-2:])
            batch[determinant_phase(batch) < 0, 0] *= -1
        return x.to(self.device, self.dtype)


@dataclass(frozen=True)
class Row:
    """One job. prepare: the contestants, built from one start."""

    name: str
    title: str
    prepare: Callable[[Setting], Mapping[str, Builder]]
    targets: tuple[Target, ...] = ()
    apart: Callable[[Setting], tuple[Mapping[str, Outcome], Sequence[Verdict]]] | None = None
    """What is measured in processes of its own: outcomes, of which those of the contestants here give the memory, and
    verdicts."""

    def run(self, setting: Setting, budget: Budget) -> RowResult:
        torch.manual_seed(0)
        begin, ran = time.perf_counter(), time.thread_time()
        outcomes = interleave(self.prepare(setting), budget, wait=setting.wait, clock=setting.clock)
        running = (time.thread_time() - ran) / (time.perf_counter() - begin)
        verdicts = [target.judge(outcomes) for target in self.targets]
        if self.apart is not None:
            alone, more = self.apart(setting)
            verdicts += more
            for name, outcome in alone.items():
                outcomes.setdefault(name, outcome).peak_bytes = outcome.peak_bytes
        if setting.quick:
            verdicts = [replace(verdict, met=None) for verdict in verdicts]
        return RowResult(self.name, self.title, outcomes, verdicts, REASONS.get(self.name, ""), running)


def product(setting: Setting, shapes: Sequence[tuple[int, ...]]) -> Builder:
    """u: X A for each matrix X, n x p, and a p x p matrix A; equal shapes in one batched call."""
    shape = shapes[0] if len(shapes) == 1 else (len(shapes), *shapes[0])
    x, a = setting.normal(*shape), setting.normal(*shape[:-2], shape[-1], shape[-1])
    y = torch.empty_like(x)
    return lambda: Contestant(lambda: torch.matmul(x, a, out=y))


# Optimizer steps ------------------------------------------------------------------------------------------


def step_row(
    name: str, title: str, shape: tuple[int, ...], *targets: Target, count: int = 1, packed: bool = False
) -> Row:
    """One optimizer step on `count` parameters, gradients given; packed: (b, n, p) is one tensor of b blocks."""

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        size = tuple(setting.size(s) if s > 8 else s for s in shape)
        copies = setting.size(count) if count > 8 else count
        start = [setting.point(*size) for _ in range(copies)]
        slopes = [setting.normal(*size) for _ in range(copies)]

        def stepping(make: MakeEngine) -> Builder:
            return lambda: step_only(make(start, RATE), slopes)

        return {
            OURS: stepping(engines.riemannian_packed if packed else engines.riemannian),
            "torch Adam": stepping(engines.free),
            "geoopt": stepping(peers.geoopt),
            "POGO": stepping(peers.pogo),
            PRODUCT: product(setting, [size] * copies),
        }

    return Row(name, title, prepare, targets)


def step_only(engine: Engine, slopes: Sequence[Tensor]) -> Contestant:
    """The gradients that one backward pass leaves, then steps with them."""
    torch.autograd.backward(engine.points(), slopes)
    return Contestant(engine.optimizer.step, engine.kept)


# Trivializations ------------------------------------------------------------------------------------------


def map_row(name: str, title: str, shape: tuple[int, ...], makers: Mapping[str, MakeEngine], *targets: Target) -> Row:
    """The weight from its coordinates, and their gradient from that of the weight: one forward and one backward pass.

    The coordinates are random, and their skew part has singular values about 1: not where a series would end at once.
    """

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        size = tuple(setting.size(s) if s > 8 else s for s in shape)
        start, slope = setting.point(*size), setting.normal(*size)
        builders = {name: _map_only(make, start, slope) for name, make in makers.items()}
        return {**builders, PRODUCT: product(setting, [size])}

    return Row(name, title, prepare, targets)


def _map_only(make: MakeEngine, start: Tensor, slope: Tensor) -> Builder:
    def build() -> Contestant:
        engine = make([start], RATE)
        with torch.no_grad():
            for p in engine.params:
                p.add_(_coordinates(p, start.shape[-2]))

        def step() -> None:
            engine.optimizer.zero_grad()
            engine.points()[0].backward(slope)

        return Contestant(step, engine.kept)

    return build


def _coordinates(p: Tensor, n: int) -> Tensor:
    """Random, with square blocks that are skew: torch and geotorch read a lower triangle, torch's householder also
    the signs of the diagonal, which stay."""
    a: Tensor = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p) * (0.35 / n**0.5)
    for block in a.split(p.shape[-1]):
        if block.shape[0] == block.shape[1]:
            block.sub_(block.mT.clone())
    return a


# Training steps -------------------------------------------------------------------------------------------

GRUS: Mapping[str, recurrent.Train] = {
    "free": recurrent.free,
    "ours, Riemannian": recurrent.ours_riemannian,
    TRIVIALIZED: recurrent.ours_trivialized,
    "split-Cayley-cat by hand": recurrent.by_hand(cached=False),
    "the same, cached": recurrent.by_hand(cached=True),
    "geotorch Cayley, cached": recurrent.geotorch("cayley"),
    "geotorch exp, cached": recurrent.geotorch("expm"),
    "POGO": recurrent.pogo,
}


def gru_contestants(setting: Setting) -> Mapping[str, Builder]:
    """One training step of a GRU: zero_grad, forward, backward, Adam."""
    hidden, steps, batch = setting.size(512), setting.size(50), setting.size(32)
    gru = recurrent.orthogonal_gates(nn.GRU(64, hidden, device=setting.device, dtype=setting.dtype))
    inputs = setting.normal(steps, batch, 64)

    def training(train: recurrent.Train) -> Builder:
        def build() -> Contestant:
            own = copy.deepcopy(gru)
            trained = train(own, own, RATE)
            points = tuple if train is recurrent.free else trained.gates
            return Contestant(lambda: trained.step(lambda: own(inputs)[0].square().mean()), points)

        return build

    return {**{name: training(train) for name, train in GRUS.items()}, PRODUCT: product(setting, [(3, hidden, hidden)])}


LONG: Mapping[str, MakeEngine] = {
    OURS: engines.riemannian,
    TRIVIALIZED: engines.trivialized,
    "torch Adam": engines.free,
    "geoopt": peers.geoopt,
    "POGO": peers.pogo,
}
LONG_SHAPE = (30_000, 50)


def long_contestant(make: MakeEngine, setting: Setting, shape: tuple[int, int] = LONG_SHAPE) -> Contestant:
    """A linear map from p to n numbers on a batch of 16: forward, backward, step."""
    n, p = (setting.size(side) for side in shape)
    torch.manual_seed(0)
    engine, inputs = make([setting.point(n, p)], RATE), setting.normal(16, p)

    def step() -> None:
        engine.optimizer.zero_grad()
        (inputs @ engine.points()[0].mT).square().mean().backward()
        engine.optimizer.step()

    return Contestant(step, engine.kept)


def long_contestants(setting: Setting) -> Mapping[str, Builder]:
    builders: dict[str, Builder] = {name: partial(long_contestant, make, setting) for name, make in LONG.items()}
    return {**builders, PRODUCT: product(setting, [tuple(setting.size(side) for side in LONG_SHAPE)])}


def long_memory(setting: Setting) -> tuple[Mapping[str, Outcome], Sequence[Verdict]]:
    """Who needs n x n matrices is only tried here, under a limit. Ours: within 32 matrices n x p of float32."""
    outcomes = memory_of((*LONG, *peers.NEED_SQUARES), setting.quick)
    n, p = (setting.size(side) for side in LONG_SHAPE)
    verdicts = []
    for name in (OURS, TRIVIALIZED):
        peak = outcomes[name].peak_bytes
        times = None if peak is None else peak / (4 * n * p)
        verdicts.append(Verdict(f"{name}: memory / n p", "≤ 32 n p", 16, times, times is not None and times <= 32))
    return outcomes, verdicts
