"""Starts that no gradient moves: where the derivative of a composition is zero, a weight would silently not train."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manifolds._points import length, probing
from manifolds.compositions import ComposedProduct, Composition

Points = dict[str, Tensor]


def of_blocks(composition: Composition, like: Tensor, block: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The tensor like this one whose i-th block is block(i, zeros); of what is not packed all is block 0."""
    x = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    if not isinstance(composition, ComposedProduct):
        return block(0, x)
    ndim, where = composition.ndim, composition._where
    blocks = [block(i, each.clone()) for i, each in enumerate(where.unpack(x, ndim))]
    return where.pack(blocks, tuple(x.shape)[x.dim() - ndim :])


def check_moves(composition: Composition, points: Points, like: Tensor, who: str, way: str = "") -> None:
    """ValueError where no first-order change of the parts changes the tensor, or a block of it. way: another one."""
    count = len(composition) if isinstance(composition, ComposedProduct) else 1
    for i in range(count):
        moved, least = _moves(composition, points, like, i)
        if moved > least:
            continue
        said = f"{who}, shape {tuple(like.shape)}{f', block {i}' if count > 1 else ''}, is where "
        if not math.isfinite(moved) or not math.isfinite(least):
            raise ValueError(
                f"{said}{composition}, or its derivative, is not finite in "
                f"{str(like.dtype).removeprefix('torch.')}, as where it overflows. Give one with smaller entries.{way}"
            )
        raise ValueError(
            f"{said}the derivative of {composition} is zero: no gradient moves it from there, whatever the loss. Give "
            f"one near that value, not at it.{way}"
        )


@torch.enable_grad()
def _moves(composition: Composition, points: Points, like: Tensor, place: int) -> tuple[float, float]:
    """How far the parts go to first order when a random change of one block is asked for, and what is rounding."""
    generator = probing()

    def random(i: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x) if i == place else x

    asked = of_blocks(composition, like, random)
    parts = composition.parts(like.shape)
    held = {name: manifold for name, (manifold, _) in parts.items() if manifold is not None}
    leaves = {name: points[name].detach().clone().requires_grad_() for name in held}
    made = composition.made({**points, **leaves}, like.shape)
    if asked.numel() == 0 or not made.requires_grad or not composition.dim(like.shape):
        return math.inf, 0.0  # there is but one such tensor
    pulled = torch.autograd.grad(made, list(leaves.values()), asked.to(made.dtype), allow_unused=True)
    sizes, lengths = [0.0], [0.0]
    for (name, manifold), g in zip(held.items(), pulled, strict=True):
        p = leaves[name].detach()
        sizes.append(_norm(p))
        lengths.append(0.0 if g is None else _norm(manifold.project(p, g)))
    # an entry that is off by eps is the square of one that is off by its root
    least: float = torch.finfo(made.dtype).eps ** 0.5 * _norm(made) * _norm(asked)
    return _norm(torch.tensor(lengths, dtype=torch.float64)) * _norm(torch.tensor(sizes, dtype=torch.float64)), least


def _norm(x: Tensor) -> float:
    """|x|, where no square over- or underflows."""
    return float(length(x.detach(), x.dim())) if x.numel() else 0.0
