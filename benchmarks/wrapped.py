"""Steps of Retracted(AdamW) beside those of RiemannianAdam, and of a table of which some rows are touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, param_groups
from constraints.optim import Retracted, RiemannianAdam
from manifolds import Sphere, Stiefel

from .engines import Engine, Holder
from .jobs import OURS, RATE, Row, Setting, step_only
from .results import Target
from .timing import Builder, Contestant

RETRACTED, ADAMW = "Retracted(torch AdamW)", "torch AdamW"
SMALL_TABLE, SPARSE = "ours, 10,000 rows", "torch SparseAdam"


def _held(start: Sequence[Tensor], packed: bool) -> nn.ModuleList:
    holders = nn.ModuleList(Holder(x.flatten(0, 1) if packed else x) for x in start)
    for i, x in enumerate(start):
        constrain(holders, f"{i}.weight", Stiefel() ** len(x) if packed else Stiefel(), Riemannian())
    return holders


def wrapped_row(
    name: str, title: str, shape: tuple[int, ...], *targets: Target, count: int = 1, packed: bool = False
) -> Row:
    """One step on `count` parameters, gradients given; packed: (b, n, p) is one tensor of b blocks."""

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        size = tuple(setting.size(s) if s > 8 else s for s in shape)
        start = [setting.point(*size) for _ in range(count)]
        slopes = [setting.normal(*size) for _ in range(count)]

        def ours() -> Contestant:
            return _stepping(RiemannianAdam(_held(start, packed), RATE), start, slopes)

        def retracted() -> Contestant:
            groups = param_groups(_held(start, packed))
            return _stepping(Retracted(torch.optim.AdamW(groups, RATE, weight_decay=0)), start, slopes)

        def free() -> Contestant:
            params = [nn.Parameter(x.clone()) for x in start]
            return _stepping(torch.optim.AdamW(params, RATE, weight_decay=0), start, slopes)

        return {OURS: ours, RETRACTED: retracted, ADAMW: free}

    return Row(name, title, prepare, targets)


def _stepping(optimizer: torch.optim.Optimizer, start: Sequence[Tensor], slopes: Sequence[Tensor]) -> Contestant:
    params: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def points() -> list[Tensor]:
        return [p.view(x.shape) for p, x in zip(params, start, strict=True)]

    held = optimizer.param_groups[0].get("manifold") is not None
    return step_only(Engine(points, points if held else tuple, params, optimizer), slopes)


def table_row(name: str, title: str, *targets: Target, dim: int = 32, touched: int = 1000) -> Row:
    """One step of a table of unit rows of which some are touched, and of one of a hundredth of its size."""

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        large, small = setting.size(1_000_000), setting.size(10_000)
        count = setting.size(touched)

        def table(rows: int) -> nn.Parameter:
            x = nn.functional.normalize(setting.normal(rows, dim), dim=-1)
            p = nn.Parameter(x)
            index = torch.randperm(rows, device=setting.device)[:count].sort().values
            p.grad = torch.sparse_coo_tensor(
                index[None], setting.normal(count, dim), p.shape, is_coalesced=True, check_invariants=True
            )
            return p

        def ours(rows: int) -> Builder:
            def build() -> Contestant:
                return Contestant(RiemannianAdam([{"params": [table(rows)], "manifold": Sphere()}], RATE).step)

            return build

        def sparse() -> Contestant:
            return Contestant(torch.optim.SparseAdam([table(large)], RATE).step)

        return {OURS: ours(large), SMALL_TABLE: ours(small), SPARSE: sparse}

    return Row(name, title, prepare, targets)
