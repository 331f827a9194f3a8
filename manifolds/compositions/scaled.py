"""Points with a free positive gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Inexact
from torch import Tensor

from .._points import inner
from ..base import Manifold, check_ndim, per_point
from ..positive import Positive
from ..product import ProductManifold
from .base import Composition, Parts, nearest_point

Points = Inexact[Tensor, "..."]


@dataclass(frozen=True)
class Scaled(Composition):
    """g X with X a point of a manifold and a gain g > 0, one for each point; of a product one for each factor.

    manifold: of points that are not zero, as orthonormal matrices or unit vectors; a class or an instance.

    >>> sorted(Scaled(Stiefel**3).parts((12, 4)).items())
    [('gain', (Positive, (3,))), ('point', (Stiefel**3, (12, 4)))]
    """

    manifold: Manifold

    if TYPE_CHECKING:

        def __init__(self, manifold: Manifold | type[Manifold]) -> None: ...

    def __post_init__(self) -> None:
        manifold = self.manifold() if isinstance(self.manifold, type) else self.manifold
        if not isinstance(manifold, Manifold):
            raise TypeError(f"Scaled takes a manifold, as in Scaled(Stiefel); got {self.manifold!r}.")
        object.__setattr__(self, "manifold", manifold)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return self.manifold.ndim

    def __repr__(self) -> str:
        return f"Scaled({self.manifold})"

    def parts(self, shape: Sequence[int]) -> Parts:
        """point: as the tensor; gain: Positive, one for each point or factor. Raises ValueError for others."""
        check_ndim(self, shape, self.ndim)
        self.manifold.dim(shape)
        batch = tuple(shape)[: len(shape) - self.ndim]
        gains = (len(self.manifold),) if isinstance(self.manifold, ProductManifold) else ()
        return {"gain": (Positive(), (*batch, *gains)), "point": (self.manifold, tuple(shape))}

    def compose(self, *, gain: Tensor, point: Points) -> Points:  # type: ignore[override]
        """g X, block by block."""
        if not isinstance(self.manifold, ProductManifold):
            return per_point(gain, self.ndim) * point
        blocks = self.manifold.unpack(point)
        shape = tuple(point.shape)[point.dim() - self.ndim :]
        scaled = [per_point(g, b.dim() - g.dim()) * b for g, b in zip(gain.unbind(-1), blocks, strict=True)]
        return self.manifold.pack(scaled, shape)

    def decompose(self, x: Points) -> dict[str, Tensor]:
        """The nearest point of x scaled to the mean size of points, and the best gain for it, Re<x, X> / |X|^2.

        Raises ValueError where that gain is not positive.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float64))
        own = torch.Generator(x.device).manual_seed(0)  # the norm of a point, which draws nothing from torch's own
        typical = self.manifold.random(*x.shape, generator=own, dtype=wide.dtype, device=x.device)
        if isinstance(self.manifold, ProductManifold):
            pairs = list(zip(self.manifold.unpack(wide), self.manifold.unpack(typical), strict=True))
            near = [_scaled_to(a, b, wide.dim() - self.ndim) for a, b in pairs]
            point = nearest_point(self.manifold, self.manifold.pack(near, tuple(x.shape)[x.dim() - self.ndim :]))
            found = zip(self.manifold.unpack(wide), self.manifold.unpack(point), strict=True)
            gain = torch.stack([_gain(a, b, wide.dim() - self.ndim) for a, b in found], -1)
        else:
            point = nearest_point(self.manifold, _scaled_to(wide, typical, wide.dim() - self.ndim))
            gain = _gain(wide, point, wide.dim() - self.ndim)
        if not bool((gain > 0).all()):
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} is not a positive multiple of points of {self.manifold}."
            )
        return {"gain": gain.to(x.real.dtype), "point": point.to(x.dtype)}


def _scaled_to(x: Tensor, like: Tensor, batch: int) -> Tensor:
    """x with the norms of like, each of a batch."""
    ndim = x.dim() - batch
    sizes = [inner(t, t, ndim).sqrt() for t in (like, x)]
    return x * per_point(sizes[0] / sizes[1].clamp_min(torch.finfo(sizes[1].dtype).tiny), ndim)


def _gain(x: Tensor, point: Tensor, batch: int) -> Tensor:
    ndim = x.dim() - batch
    return inner(x, point, ndim) / inner(point, point, ndim)
