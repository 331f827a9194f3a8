"""The table: every row of the benchmark with its targets, on a processor and on an accelerator."""

from __future__ import annotations

import torch

from manifolds import retractions

from . import engines, peers
from .jobs import OURS, PRODUCT, TRIVIALIZED, Row, gru_contestants, long_contestants, long_memory, map_row, step_row
from .muon import DUAL, muon_row
from .results import Target
from .sets import SET_ROWS
from .wrapped import RETRACTED, SMALL_TABLE, table_row, wrapped_row

POGO, GEOOPT, ADAM = "POGO", "geoopt", "torch Adam"


def faster(than: str | tuple[str, ...], bound: float, hope: float, ours: str = OURS) -> Target:
    return Target("faster", ours, (than,) if isinstance(than, str) else than, bound, hope)


def cost(against: str, bound: float, hope: float, ours: str = OURS) -> Target:
    return Target("cost", ours, (against,), bound, hope)


def both(geoopt: tuple[float, float], pogo: tuple[float, float]) -> tuple[Target, Target]:
    return faster(GEOOPT, *geoopt), faster(POGO, *pogo)


TORCH_MAPS = ("torch cayley", "torch matrix_exp", "torch householder")
CAYLEY_MAKERS = {
    OURS: engines.trivialized_packed,
    "torch cayley": peers.torch_orthogonal("cayley"),
    "geotorch cayley": peers.geotorch("cayley"),
}
EXP_MAKERS = {
    OURS: lambda start, lr: engines.trivialized_packed(start, lr, retractions.exp),
    "torch matrix_exp": peers.torch_orthogonal("matrix_exp"),
    "geotorch expm": peers.geotorch("expm"),
}
TALL_MAKERS = {
    OURS: engines.trivialized,
    "torch cayley": peers.torch_orthogonal("cayley"),
    "torch matrix_exp": peers.torch_orthogonal("matrix_exp"),
    "torch householder": peers.torch_orthogonal("householder"),
    "geotorch cayley": peers.geotorch("cayley"),
}

ROWS: tuple[Row, ...] = (
    Row(
        "gru",
        "GRU training step, H=512, T=50, B=32",
        gru_contestants,
        (cost("free", 1.25, 1.15, "ours, Riemannian"), cost("free", 1.40, 1.25, TRIVIALIZED)),
    ),
    step_row(
        "step-3x512",
        "Adam step, 3 x 512 x 512 packed",
        (3, 512, 512),
        *both((2, 3), (1.8, 2.7)),
        cost(PRODUCT, 4.5, 3),
        packed=True,
    ),
    step_row("step-1024x64", "Adam step, 1024 x 64", (1024, 64), *both((1.5, 3), (1.3, 2))),
    step_row(
        "step-2048x128",
        "Adam step, 2048 x 128",
        (2048, 128),
        *both((1.5, 3), (1.3, 2)),
        cost(PRODUCT, 9, 6),
    ),
    step_row("step-64x64x64", "Adam step, 64 of 64 x 64", (64, 64, 64), *both((3, 6), (2, 4))),
    step_row("step-100-64", "Adam step, 100 parameters 64 x 64", (64, 64), *both((4, 8), (2.5, 6)), count=100),
    step_row("step-300-16", "Adam step, 300 parameters 16 x 16", (16, 16), *both((4, 8), (2.5, 6)), count=300),
    muon_row("muon-3x512", "Muon step, 3 x 512 x 512 packed", (3, 512, 512), faster(DUAL, 1.2, 2)),
    muon_row("muon-2048x128", "Muon step, 2048 x 128", (2048, 128), faster(DUAL, 5, 20)),
    wrapped_row(
        "wrapped-3x512",
        "Retracted step, 3 x 512 x 512 packed",
        (3, 512, 512),
        cost(OURS, 1.5, 1.25, RETRACTED),
        packed=True,
    ),
    wrapped_row("wrapped-2048x128", "Retracted step, 2048 x 128", (2048, 128), cost(OURS, 1.5, 1.5, RETRACTED)),
    wrapped_row("wrapped-64x64x64", "Retracted step, 64 of 64 x 64", (64, 64, 64), cost(OURS, 1.5, 1.25, RETRACTED)),
    wrapped_row(
        "wrapped-100-64",
        "Retracted step, 100 parameters 64 x 64",
        (64, 64),
        cost(OURS, 1.5, 1.5, RETRACTED),
        count=100,
    ),
    table_row("table", "Adam step, 1,000 touched rows of 1,000,000 x 32", cost(SMALL_TABLE, 1.5, 1.1)),
    step_row(
        "step-20000x3",
        "Adam step, 20,000 of 3 x 3",
        (20_000, 3, 3),
        *both((2, 5), (1.2, 3)),
        cost(ADAM, 2.5, 1.5),
    ),
    step_row(
        "step-4096x8",
        "Adam step, 4,096 of 8 x 8",
        (4_096, 8, 8),
        *both((2, 5), (1.2, 3)),
        cost(ADAM, 2.5, 1.5),
    ),
    map_row(
        "map-cayley",
        "Cayley and its derivative, 3 x 512 x 512",
        (3, 512, 512),
        CAYLEY_MAKERS,
        faster("torch cayley", 1.3, 2),
    ),
    map_row(
        "map-exp", "exp and its derivative, 3 x 512 x 512", (3, 512, 512), EXP_MAKERS, faster("torch matrix_exp", 6, 12)
    ),
    map_row(
        "map-2048x128", "weight and its derivative, 2048 x 128", (2048, 128), TALL_MAKERS, faster(TORCH_MAPS, 30, 100)
    ),
    Row(
        "long",
        "30,000 x 50: forward, backward, step",
        long_contestants,
        tuple(Target("cost", name, (PRODUCT,), 10, 10, hope_only=True) for name in (OURS, TRIVIALIZED)),
        long_memory,
    ),
    *SET_ROWS,
)


def _square(n: int) -> Row:
    return step_row(f"cuda-{n}", f"Adam step, {n} x {n}", (n, n), cost(PRODUCT, 4.5, 3))


# On an accelerator POGO and geoopt are shown, and the products are the limit.
DEVICE_ROWS: tuple[Row, ...] = (
    *(_square(n) for n in (256, 512, 1024, 2048, 4096)),
    step_row("cuda-2048x128", "Adam step, 2048 x 128", (2048, 128), cost(PRODUCT, 9, 6)),
    step_row("cuda-30000x50", "Adam step, 30,000 x 50", (30_000, 50), cost(PRODUCT, 9, 6)),
    step_row("cuda-200000x3", "Adam step, 200,000 of 3 x 3", (200_000, 3, 3), cost(ADAM, 2.5, 1.5)),
    step_row("cuda-200000x8", "Adam step, 200,000 of 8 x 8", (200_000, 8, 8), cost(ADAM, 2.5, 1.5)),
)


def rows_for(device: torch.device) -> tuple[Row, ...]:
    return ROWS if device.type == "cpu" else DEVICE_ROWS
