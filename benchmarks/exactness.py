"""How far from orthonormal a weight ever is: random gradients, many steps, any learning rate, every dtype."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from manifolds import Stiefel

from . import engines, peers
from .engines import Engine, MakeEngine
from .results import Verdict
from .timing import infeasibility, why

RATES = (1e-4, 1e-2, 1.0)
ALL_RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHAPES = ((2, 16, 16), (2, 32, 8))
LOOK_EVERY = 10
OURS = "ours, Riemannian"

MAKERS: Mapping[str, MakeEngine] = {
    OURS: engines.riemannian,
    "ours, trivialized": engines.trivialized,
    "geoopt": peers.geoopt,
    "POGO": peers.pogo,
    "torch cayley": peers.torch_orthogonal("cayley"),
    "torch householder": peers.torch_orthogonal("householder"),
    "geotorch expm": peers.geotorch("expm"),
}
BOUNDS: Mapping[torch.dtype, float] = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 1e-5,
    torch.complex64: 1e-5,
}
"""What max|Q^H Q - I| may be; in bfloat16 for the float32 master, of which the weight is the rounding."""


@dataclass(frozen=True)
class Cell:
    """The worst error over all steps of one engine in one dtype at one learning rate; None where it cannot."""

    engine: str
    dtype: str
    lr: float
    steps: int
    error: float | None
    cannot: str | None = None

    def to_json(self) -> dict[str, Any]:
        finite = self.error is None or math.isfinite(self.error)
        return {**asdict(self), "error": self.error if finite else "nan"}


def cells(rates: Sequence[float]) -> list[tuple[str, torch.dtype, float]]:
    return [(name, dtype, lr) for dtype in BOUNDS for lr in rates for name in MAKERS]


def measure(steps: int, rates: Sequence[float], seconds: float, tick: Callable[[str], None]) -> Iterator[Cell]:
    """Every cell in turn; a peer that has used `seconds` stops there, and its cell says after how many steps."""
    for name, dtype, lr in cells(rates):
        tick(f"exactness: {name}, {_short(dtype)}")
        yield measure_one(name, MAKERS[name], dtype, lr, steps, math.inf if name == OURS else seconds)


def measure_one(name: str, make: MakeEngine, dtype: torch.dtype, lr: float, steps: int, seconds: float) -> Cell:
    worst, done, begin = 0.0, 0, time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = _start(make, dtype, lr)
            generator = torch.Generator().manual_seed(1)
            while done < steps and time.perf_counter() - begin < seconds and not math.isnan(worst):
                for _ in range(min(LOOK_EVERY, steps - done)):
                    _random_step(engine, generator)
                    done += 1
                error = infeasibility(engine.kept())
                worst = error if math.isnan(error) else max(worst, error)
    except Exception as error:
        return Cell(name, _short(dtype), lr, done, None, why(error))
    return Cell(name, _short(dtype), lr, done, worst)


def _start(make: MakeEngine, dtype: torch.dtype, lr: float) -> Engine:
    torch.manual_seed(0)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    start = [Stiefel().random(*shape, dtype=exact) for shape in SHAPES]
    if not dtype.is_complex:
        for matrix in start[0]:
            if torch.linalg.det(matrix) < 0:
                matrix[0] *= -1
    return make([x.to(dtype) for x in start], lr)


def _random_step(engine: Engine, generator: torch.Generator) -> None:
    engine.optimizer.zero_grad()
    points = engine.points()
    wide = [torch.complex64 if x.is_complex() else torch.float32 for x in points]
    slopes = [torch.randn(x.shape, dtype=d, generator=generator).to(x.dtype) for x, d in zip(points, wide, strict=True)]
    torch.autograd.backward(points, slopes)
    engine.optimizer.step()


def verdicts(found: Sequence[Cell]) -> list[Verdict]:
    """The worst error of RiemannianAdam in each dtype against its bound; a step that raised is a miss."""
    judged = []
    for dtype, bound in BOUNDS.items():
        mine = [cell for cell in found if cell.engine == OURS and cell.dtype == _short(dtype)]
        errors = [cell.error for cell in mine]
        worst = max((e for e in errors if e is not None), default=None)
        met = bool(errors) and all(e is not None and e <= bound for e in errors)
        judged.append(Verdict(f"{OURS}, {_short(dtype)}", f"max|QᵀQ - I| ≤ {bound:g}", bound, worst, met))
    return judged


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
