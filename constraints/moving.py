"""Starts that no gradient moves: where the derivative of a composition is zero, a weight would silently not train."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    stuck = [i for i in range(count) if not _moves(composition, points, like, i)]
    if stuck:
        which = f", block {stuck[0]}" if count > 1 else ""
        raise ValueError(
            f"{who}, shape {tuple(like.shape)}{which}, is where the derivative of {composition} is zero: no gradient "
            f"moves it from there, whatever the loss. Give one near that value, not at it.{way}"
        )


@torch.enable_grad()
def _moves(composition: Composition, points: Points, like: Tensor, place: int) -> bool:
    """Whether the parts have anywhere to go to first order when a random change of one block is asked for."""
    generator = torch.Generator().manual_seed(0)

    def random(i: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x) if i == place else x

    asked = of_blocks(composition, like, random)
    parts = composition.parts(like.shape)
    held = {name: manifold for name, (manifold, _) in parts.items() if manifold is not None}
    leaves = {name: points[name].detach().clone().requires_grad_() for name in held}
    made = composition.made({**points, **leaves}, like.shape)
    if asked.numel() == 0 or not made.requires_grad or not composition.dim(like.shape):
        return True  # there is but one such tensor
    pulled = torch.autograd.grad(made, list(leaves.values()), asked.to(made.dtype), allow_unused=True)
    length = size = 0.0
    for (name, manifold), g in zip(held.items(), pulled, strict=True):
        p = leaves[name].detach()
        size += float(p.abs().square().sum())
        length += 0.0 if g is None else float(manifold.project(p, g).abs().square().sum())
    # an entry that is off by eps is the square of one that is off by its root
    least: float = torch.finfo(made.dtype).eps ** 0.5 * float(made.detach().norm()) * float(asked.norm())
    return length > 0 and (length * size) ** 0.5 > least
