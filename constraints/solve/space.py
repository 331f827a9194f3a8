"""Many points of many manifolds as one tensor of rows, so that solvers read as they do in R^n.

A point of M_1 x ... x M_k, and a tangent vector there, is a row of N real numbers; B independent problems are B rows.
Inner products are a float for one row and (B, 1) for B rows, so that they multiply rows as they are. Axes before those
are stacks of tangent vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds import Euclidean, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Stiefel

from .numbers import Number, sqrt, where

Rows = Float[Tensor, "*rows N"]


@dataclass(frozen=True)
class Piece:
    """One tensor of the problem: its name (None where there is only one), its manifold and its shape without B."""

    name: str | None
    manifold: Manifold
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """How many real numbers it takes in a row."""
        return math.prod(self.shape) * (2 if self.dtype.is_complex else 1)

    def __str__(self) -> str:
        return "x" if self.name is None else f"x[{self.name!r}]"


class Space:
    """M_1 x ... x M_k, with inner products summed over the factors; batched: the pieces have a leading axis of B."""

    def __init__(self, pieces: Sequence[Piece], batched: bool) -> None:
        self.pieces, self.batched = tuple(pieces), batched
        self.complaint: str | None = None
        """What a manifold said of the last rows that it could not work on; the answer is NaN for these."""
        self._widths = [piece.width for piece in self.pieces]
        self._only = self.pieces[0] if len(self.pieces) == 1 and not self.pieces[0].dtype.is_complex else None

    @cached_property
    def is_ambient(self) -> bool:
        """Whether the metric is that of the ambient space at every point, as far as can be told."""
        return all(is_ambient(piece.manifold) for piece in self.pieces)

    # Rows and pieces ---------------------------------------------------------------------------------------

    def split(self, rows: Rows) -> list[Tensor]:
        """The pieces of rows, as views: (*rows, *shape)."""
        lead = rows.shape[:-1]
        if self._only is not None:
            return [rows.reshape(lead + self._only.shape)]
        parts = []
        for piece, part in zip(self.pieces, rows.split(self._widths, -1), strict=True):
            if piece.dtype.is_complex:
                part = torch.view_as_complex(part.reshape(*lead, *piece.shape, 2))
            parts.append(part.reshape(lead + piece.shape))
        return parts

    def join(self, parts: Sequence[Tensor]) -> Rows:
        """The rows whose `split` has these parts."""
        rows = []
        for piece, part in zip(self.pieces, parts, strict=True):
            lead = part.shape[: part.dim() - len(piece.shape)]
            real = torch.view_as_real(part.resolve_conj()) if piece.dtype.is_complex else part
            rows.append(real.reshape(*lead, piece.width))
        return rows[0] if len(rows) == 1 else torch.cat(rows, -1)

    # Geometry ----------------------------------------------------------------------------------------------

    def project(self, x: Rows, a: Rows) -> Rows:
        """The tangent vectors at x nearest to a."""
        return self._each(lambda m, *t: m.project(*t), x, a)

    def gradient(self, x: Rows, g: Rows) -> Rows:
        """The Riemannian gradient of what has Euclidean gradient g."""
        return self._each(lambda m, *t: m.gradient(*t), x, g)

    def retract(self, x: Rows, v: Rows) -> Rows:
        """R_x(v)."""
        return self._each(lambda m, *t: m.retract(*t), x, v)

    def transport(self, x: Rows, y: Rows, v: Rows) -> Rows:
        """v carried from T_x to T_y."""
        if v.dim() > x.dim():
            x, y = x.expand_as(v), y.expand_as(v)
        return self._each(lambda m, *t: m.transport(*t), x, y, v)

    # Vectors that lie still --------------------------------------------------------------------------------
    # transport(x, y, v) = fasten(y, loose(x, v)), so that what is loose is carried nowhere. Inner products of loose
    # vectors are those of the ambient space: with one that is tangent where they are fastened they are right; two
    # from afar are off by what a projection takes away there, of second order in the way, on O(n) by nothing.

    @cached_property
    def lies_still(self) -> bool:
        """Whether each piece is transported by Y X^H or by projection."""
        return self.is_ambient and all(_lies_still(piece) for piece in self.pieces)

    @cached_property
    def _turns(self) -> bool:
        return any(_turns(piece.manifold, piece.shape) for piece in self.pieces)

    def loose(self, x: Rows, v: Rows) -> Rows:
        """X^H V of what is turned, and what is projected as it is."""
        if not self._turns:
            return v
        return self._each(lambda m, p, a: p.mH @ a if _turns(m, p.shape) else a, x, v)

    def fasten(self, x: Rows, c: Rows) -> Rows:
        """X C of what is turned, and the projection of what is projected."""
        return self._each(lambda m, p, a: p @ a if _turns(m, p.shape) else m.project(p, a), x, c)

    def dot(self, u: Rows, v: Rows) -> Number:
        """The inner product of R^N."""
        return (u * v).sum(-1, keepdim=True) if self.batched else torch.dot(u, v).item()

    def inner(self, x: Rows, u: Rows, v: Rows) -> Number:
        """<u, v> at x, summed over the pieces; of single rows, not of stacks."""
        if self.is_ambient:
            return self.dot(u, v)

        def compute(x: Rows, u: Rows, v: Rows) -> Tensor:
            pieces = zip(self.pieces, self.split(x), self.split(u), self.split(v), strict=True)
            numbers = [piece.manifold.inner(*parts) for piece, *parts in pieces]
            total = sum(n.reshape(len(n), -1).sum(1, keepdim=True) if self.batched else n.sum() for n in numbers)
            # as wide as the rows, as what stands for those on which a manifold raises
            return total.expand_as(v)  # type: ignore[union-attr]

        found = self._known(compute, x, u, v)
        return found[..., :1] if self.batched else found[0].item()

    def norm(self, x: Rows, v: Rows) -> Number:
        """|v| at x."""
        squared = self.inner(x, v, v)
        return sqrt(where(squared < 0, 0.0, squared))  # NaN stays NaN

    def size(self, v: Rows) -> Number:
        """The norm of v as a row, whatever the metric."""
        return v.norm(dim=-1, keepdim=True) if self.batched else v.norm().item()

    def dim(self) -> int:
        """Degrees of freedom of one row, real ones."""
        return sum(
            p.manifold.dim_of_complex(p.shape) if p.dtype.is_complex else p.manifold.dim(p.shape) for p in self.pieces
        )

    def _each(self, method: Callable[..., Tensor], *rows: Rows) -> Rows:
        def compute(*rows: Rows) -> Rows:
            if (only := self._only) is not None:
                lead = rows[-1].shape[:-1]
                shape = lead + only.shape
                return method(only.manifold, *[r.reshape(shape) for r in rows]).reshape(*lead, -1)
            parts = zip(self.pieces, *[self.split(r) for r in rows], strict=True)
            return self.join([method(piece.manifold, *tensors) for piece, *tensors in parts])

        return self._known(compute, *rows)

    def _known(self, compute: Callable[..., Tensor], *rows: Rows) -> Tensor:
        """compute(*rows), NaN for the rows on which it raises: one problem that cannot go on keeps no other."""
        try:
            return compute(*rows)
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            self.complaint = str(error)
        half = rows[-1].shape[-2] // 2 if self.batched else 0
        if not half:
            return torch.full_like(rows[-1], math.nan)
        parts = [[r[..., :half, :] for r in rows], [r[..., half:, :] for r in rows]]
        return torch.cat([self._known(compute, *part) for part in parts], -2)


def is_ambient(manifold: Manifold) -> bool:
    """Whether the metric is known to be Re<u, v> at every point. Then Hess f(x)[v] = P_x D(P_x grad f(x))[v]."""
    if isinstance(manifold, ProductManifold):
        return all(map(is_ambient, manifold.factors))
    if isinstance(manifold, Stiefel):
        return manifold.metric == "euclidean"
    kind = type(manifold)
    return kind.inner is Manifold.inner and kind.gradient is Manifold.gradient


def _turns(manifold: Manifold, shape: Sequence[int]) -> bool:
    square = isinstance(manifold, Stiefel) and shape[-1] == shape[-2]
    return square or isinstance(manifold, (Orthogonal, SpecialOrthogonal))


def _lies_still(piece: Piece) -> bool:
    projects = type(piece.manifold).transport in (Manifold.transport, Euclidean.transport)
    return projects or isinstance(piece.manifold, Stiefel) or _turns(piece.manifold, piece.shape)
