"""The peers, each through the calls that its documentation recommends, in the layout that it prefers.

Imported only when they are built: who is not installed is shown as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .engines import Engine, Holder, MakeEngine

TorchMap = Literal["cayley", "matrix_exp", "householder"]
GeotorchMap = Literal["cayley", "expm"]


def geoopt(start: Sequence[Tensor], lr: float) -> Engine:
    """geoopt.optim.RiemannianAdam on the Stiefel manifold with the Euclidean metric, batches as they are."""
    import geoopt as package

    manifold = package.Stiefel(canonical=False)
    params: list[nn.Parameter] = [package.ManifoldParameter(x.clone(), manifold=manifold) for x in start]
    optimizer = package.optim.RiemannianAdam(params, lr=lr)
    return Engine(lambda: params, lambda: params, params, optimizer)


def pogo(start: Sequence[Tensor], lr: float) -> Engine:
    """pogo.POGO with pogo.base.VectorAdam, the pair of its "getting started".

    It expects batches (b, p, n) of matrices with p <= n orthonormal rows, so tall ones are kept transposed.
    """
    from pogo import POGO, base

    params = [nn.Parameter(_rows(x).contiguous().clone()) for x in start]
    optimizer = POGO(params, base.VectorAdam(), lr)

    def points() -> list[Tensor]:
        return [(p.mT if x.shape[-2] > x.shape[-1] else p).view(x.shape) for p, x in zip(params, start, strict=True)]

    return Engine(points, points, params, optimizer)


def _rows(x: Tensor) -> Tensor:
    batch = x if x.ndim == 3 else x[None]
    return batch.mT if x.shape[-2] > x.shape[-1] else batch


def parametrized(start: Sequence[Tensor], lr: float, apply: Callable[[Holder], object]) -> Engine:
    """One parametrized module for each matrix, trained by torch.optim.Adam; batches are taken apart.

    Apart, because torch's batched solve on CPU is not to be trusted after torch.set_num_threads.
    """
    holders = [[Holder(matrix) for matrix in (x if x.ndim == 3 else x[None])] for x in start]
    for holder in (holder for batch in holders for holder in batch):
        apply(holder)
    params = [p for batch in holders for holder in batch for p in holder.parameters()]

    def points() -> list[Tensor]:
        stacks = [[holder() for holder in batch] for batch in holders]
        return [torch.stack(s) if x.ndim == 3 else s[0] for s, x in zip(stacks, start, strict=True)]

    return Engine(points, points, params, torch.optim.Adam(params, lr))


def torch_orthogonal(kind: TorchMap) -> MakeEngine:
    """torch.nn.utils.parametrizations.orthogonal on one module per matrix."""

    def apply(holder: Holder) -> object:
        # without a base householder is faster, and needs no n x n matrix; the others cannot be assigned to without
        with_base = kind != "householder"
        return nn.utils.parametrizations.orthogonal(holder, "weight", kind, use_trivialization=with_base)

    return lambda start, lr: parametrized(start, lr, apply)


def geotorch(kind: GeotorchMap) -> MakeEngine:
    """geotorch.orthogonal on one module per matrix, started at the given point where that has determinant 1."""

    def apply(holder: Holder) -> object:
        import geotorch as package

        start = holder.weight.detach().clone()
        package.orthogonal(holder, "weight", triv=kind)
        holder.to(start.dtype)
        holder.weight = start  # type: ignore[assignment]
        return holder

    return lambda start, lr: parametrized(start, lr, apply)


NEED_SQUARES: dict[str, MakeEngine] = {
    "torch householder": torch_orthogonal("householder"),
    "geotorch Cayley": geotorch("cayley"),
}
"""For n x p matrices these make n x n ones, in the forward or in the backward pass."""
