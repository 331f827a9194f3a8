"""The two parts of O(n), which no path joins: on which of them factors are, and their mirror images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manifolds import Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Stiefel


def determinants(manifold: Manifold, x: Tensor, lead: int) -> Tensor | None:
    """Signs of the determinants of the factors on O(n): (*lead axes, k) of 1 and -1; None where there are none."""
    if isinstance(manifold, ProductManifold):
        found = [determinants(m, block, lead) for m, block in zip(manifold, manifold.unpack(x), strict=True)]
        known = [signs for signs in found if signs is not None]
        return torch.cat(known, -1) if known else None
    if not _has_two(manifold, x):
        return None
    # the residual of a reflection is 2
    signs = torch.where(SpecialOrthogonal().residual(x.detach()) < 1, 1, -1)
    return signs.reshape(*x.shape[:lead], math.prod(x.shape[lead:-2]))


def mirrored(manifold: Manifold, x: Tensor, lead: int, signs: Iterator[int]) -> Tensor:
    """x with the first column of each factor on O(n) multiplied by the next of the signs."""
    if isinstance(manifold, ProductManifold):
        blocks = zip(manifold, manifold.unpack(x), strict=True)
        return manifold.pack([mirrored(m, block, lead, signs) for m, block in blocks], x.shape)
    if not _has_two(manifold, x):
        return x
    batch = x.shape[lead:-2]
    each = torch.tensor([next(signs) for _ in range(math.prod(batch))], dtype=x.dtype, device=x.device)
    return torch.cat([x[..., :1] * each.reshape(*batch, 1, 1), x[..., 1:]], -1)


def _has_two(manifold: Manifold, x: Tensor) -> bool:
    square = isinstance(manifold, Stiefel) and x.shape[-1] == x.shape[-2]
    return (square or isinstance(manifold, Orthogonal)) and not x.is_complex()
