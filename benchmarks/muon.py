"""Steps of steepest descent in the spectral norm: ours, the public iteration for manifold Muon, and torch's Muon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constraints import Riemannian, constrain
from constraints.optim import RiemannianMuon, spectral
from manifolds import Stiefel

from .engines import Engine, Holder, MakeEngine
from .jobs import OURS, PRODUCT, RATE, Row, Setting, product, step_only
from .results import Target
from .timing import Builder

DUAL, TORCH = "manifold Muon, 100 dual steps", "torch Muon"
BY_PRODUCTS = "ours, msign by products"


def riemannian(start: Sequence[Tensor], lr: float, **options: Any) -> Engine:
    """RiemannianMuon, each batch (b, n, p) packed as one (b n, p) tensor on Stiefel**b."""
    holders = nn.ModuleList(Holder(x.flatten(0, -2)) for x in start)
    for i, x in enumerate(start):
        constrain(holders, f"{i}.weight", Stiefel() ** x.shape[:-2].numel(), Riemannian())
    params = list(holders.parameters())

    def unpacked() -> list[Tensor]:
        return [p.view(x.shape) for p, x in zip(params, start, strict=True)]

    return Engine(unpacked, unpacked, params, RiemannianMuon(holders, lr, **options))


def by_products(start: Sequence[Tensor], lr: float) -> Engine:
    """SPEL with the msign that accelerators have; of tall matrices, where the direction is a value."""
    return riemannian(start, lr, direction=lambda x, m: spectral.msign_by_products(m))


class ManifoldMuon(Optimizer):
    """W <- msign(W - lr A), A = msign(G + 2 W L) after steps L <- L - a (1 - k / K) (W^T A + A^T W), exact products.

    Source: Bernstein, Modular manifolds (2025), its iteration; a = 0.01, K = 100, L = -(W^T G + G^T W) / 4 at first.
    """

    keeps_manifolds = True

    def __init__(self, params: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                g, count = w.grad, 100
                multiplier = -(w.mT @ g + g.mT @ w) / 4
                for k in range(count):
                    a = spectral.msign(g + 2 * w @ multiplier)
                    normal = w.mT @ a + a.mT @ w
                    if float(normal.norm()) / normal.numel() ** 0.5 < 1e-6:
                        break
                    multiplier -= 0.01 * (1 - k / count) * normal
                w.copy_(spectral.msign(w - group["lr"] * a))


def dual_steps(start: Sequence[Tensor], lr: float) -> Engine:
    """The iteration, batches as they are."""
    params = [nn.Parameter(x.clone()) for x in start]
    return Engine(lambda: params, lambda: params, params, ManifoldMuon(params, lr))


def torch_muon(start: Sequence[Tensor], lr: float) -> Engine:
    """torch.optim.Muon on free matrices, one Parameter each: five inexact quintics in bfloat16."""
    params = [[nn.Parameter(m.clone()) for m in x.view(-1, *x.shape[-2:])] for x in start]
    flat = [p for batch in params for p in batch]

    def points() -> list[Tensor]:
        return [torch.stack(list(batch)).view(x.shape) for batch, x in zip(params, start, strict=True)]

    return Engine(points, tuple, flat, torch.optim.Muon(flat, lr))


def muon_row(name: str, title: str, shape: tuple[int, ...], *targets: Target) -> Row:
    """One step of each, gradients given."""

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        size = tuple(setting.size(s) if s > 8 else s for s in shape)
        start, slopes = [setting.point(*size)], [setting.normal(*size)]

        def stepping(make: MakeEngine | Callable[[Sequence[Tensor], float], Engine]) -> Builder:
            return lambda: step_only(make(start, RATE), slopes)

        tall = {BY_PRODUCTS: stepping(by_products)} if size[-2] > size[-1] else {}
        return {
            OURS: stepping(riemannian),
            **tall,
            DUAL: stepping(dual_steps),
            TORCH: stepping(torch_muon),
            PRODUCT: product(setting, [size]),
        }

    return Row(name, title, prepare, targets)
