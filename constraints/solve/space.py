"""Many points of many manifolds as one tensor of rows, so that solvers read as they do in R^n.

A point of M_1 x ... x M_k, and the coordinates of a tangent vector there, see `Piece`, are a row of N real numbers; B
independent problems are B rows. Inner products are a float for one row and (B, 1) for B rows, so that they multiply
rows as they are. Axes before those are stacks of tangent vectors.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from manifolds import Orthogonal, SpecialOrthogonal, Sphere, Stiefel

from .numbers import Number, sqrt, where
from .piece import Piece, is_curved

Rows = Float[Tensor, "*rows N"]

_CODES = {torch.float64: "d", torch.float32: "f"}

ERRORS = (ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What manifolds raise of points on which they cannot work."""


class Space:
    """M_1 x ... x M_k, with inner products summed over the factors; batched: the pieces have a leading axis of B."""

    def __init__(self, pieces: Sequence[Piece], batched: bool) -> None:
        self.pieces, self.batched = tuple(pieces), batched
        self.complaint: str | None = None
        """What a manifold said of the last rows that it could not work on; the answer is NaN for these."""
        self._widths = [piece.width for piece in self.pieces]
        self._layouts: dict[torch.Size, list[tuple[int, ...]]] = {}
        self._is_one = len(self.pieces) == 1 and not self.pieces[0].dtype.is_complex
        self._one = self.pieces[0] if self._is_one and not batched else None
        self._shape = () if self._one is None else self._one.laid_out(())
        self._point: tuple[Rows, Tensor] | None = None
        self._vector: tuple[Rows, Tensor] | None = None

    @cached_property
    def is_ambient(self) -> bool:
        """Whether the metric is that of the ambient space at every point, as far as can be told."""
        return all(piece.is_ambient for piece in self.pieces)

    # Rows and pieces ---------------------------------------------------------------------------------------

    def split(self, rows: Rows) -> list[Tensor]:
        """The pieces of rows, as views: (*rows, *shape)."""
        if self._one is not None and rows.dim() == 1:
            return [rows.reshape(self._one.shape)]
        lead = rows.shape[:-1]
        if self._is_one:
            return [rows.reshape(lead + self.pieces[0].shape)]
        return self._cut(rows, [(*lead, *piece.shape) for piece in self.pieces])

    def join(self, parts: Sequence[Tensor]) -> Rows:
        """The rows whose `split` has these parts."""
        return self._joined(parts, parts[0].shape[: parts[0].dim() - len(self.pieces[0].shape)])

    def _cut(self, rows: Rows, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        parts = []
        for piece, part, shape in zip(self.pieces, rows.split(self._widths, -1), shapes, strict=True):
            if piece.dtype.is_complex:
                parts.append(torch.view_as_complex(part.reshape(*shape, 2)))
            else:
                parts.append(part.reshape(shape))
        return parts

    def _joined(self, parts: Sequence[Tensor], lead: Sequence[int]) -> Rows:
        if self._is_one:
            return parts[0].reshape(*lead, self._widths[0])
        rows = []
        for width, part in zip(self._widths, parts, strict=True):
            real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
            rows.append(real.reshape(*lead, width))
        return rows[0] if len(rows) == 1 else torch.cat(rows, -1)

    # Geometry ----------------------------------------------------------------------------------------------

    def project(self, x: Rows, a: Rows) -> Rows:
        """Coordinates at x made of any a, linear in a; coordinates stay what they are."""
        return self._each(Piece.project, x, a)

    def straight(self, x: Rows, c: Rows) -> Rows:
        """c, which is tangent at x but for rounding, without that; c itself where all tensors of its shape are."""
        return c if self._stays else self._each(Piece.project, x, c)

    def gradient(self, x: Rows, g: Rows) -> Rows:
        """The Riemannian gradient of what has Euclidean gradient g."""
        return self._each(Piece.gradient, x, g)

    def gradient_of(self, x: Rows, slopes: Sequence[Tensor]) -> Rows:
        """The Riemannian gradient of what has these Euclidean gradients, piece by piece."""
        if self._one is None or slopes[0].shape != self._one.shape:
            return self.gradient(x, self.join(slopes))
        try:
            return self._one.gradient(self._here(x), slopes[0].reshape(self._shape)).reshape(-1)
        except ERRORS as error:
            return self._apart(error, partial(self._by_piece, Piece.gradient), x, self.join(slopes))

    def vector(self, x: Rows, c: Rows) -> Rows:
        """The tangent vector in the ambient space whose coordinates are c."""
        return self._each(Piece.vector, x, c) if self._turns else c

    def coordinates(self, x: Rows, v: Rows) -> Rows:
        """Coordinates of a tangent vector in the ambient space; of the nearest one, for other vectors."""
        return self._each(Piece.coordinates, x, v)

    def retract(self, x: Rows, c: Rows, t: Number = 1.0) -> Rows:
        """R_x(t c)."""
        if self._one is None or c.dim() > 1:
            return self._each(Piece.retract, x, c if isinstance(t, float) and t == 1 else c * t)
        try:
            y = self._one.retract(self._here(x), self._there(c), t)
        except ERRORS as error:
            return self._apart(error, partial(self._by_piece, Piece.retract), x, c * t)
        self._point = y.reshape(-1), y  # whoever goes there asks for it next
        return self._point[0]

    def own_retraction(self, x: Rows, c: Rows) -> Rows:
        """R_x(c) by the manifolds themselves, which steps of solvers may replace by another of the same order."""
        return self._each(Piece.own_retraction, x, c)

    def transport(self, x: Rows, y: Rows, c: Rows) -> Rows:
        """c carried from T_x to T_y."""
        if c.dim() > x.dim():
            x, y = x.expand_as(c), y.expand_as(c)
        return self._each(Piece.transport, x, y, c)

    # Where all of it lies still, transport(x, y, c) = fasten(y, c), so that what is kept is carried nowhere until it
    # is used. Inner products of vectors from afar are right with one that is tangent where they are fastened; those
    # of two are off by what a projection takes away there, of second order in the way, on O(n) by nothing.

    @cached_property
    def lies_still(self) -> bool:
        """Whether transport is nothing in coordinates, or the projection at the new point."""
        return all(piece.lies_still for piece in self.pieces)

    @cached_property
    def _turns(self) -> bool:
        return any(piece.turns for piece in self.pieces)

    @cached_property
    def _stays(self) -> bool:
        return all(piece.turns for piece in self.pieces)

    def fasten(self, y: Rows, c: Rows) -> Rows:
        """The transport to y of what lies still."""
        return c if self._stays else self._each(Piece.fasten, y, c)

    @cached_property
    def takes_any(self) -> bool:
        """Whether `retract` goes to the point nearest to x + c for any c, tangent or not."""
        return all(piece.turns or piece.takes_any for piece in self.pieces)

    def aimed(self, x: Rows, c: Rows) -> Rows:
        """What lies still as a direction at x: fastened, but where `retract` takes any vector. There x + t c, and with
        it the curve of its nearest points, has the same slope, and turns from the other by O(t |c| |c - fasten(x, c)|).
        """
        return c if self.takes_any else self.fasten(x, c)

    def dot(self, u: Rows, v: Rows) -> Number:
        """The inner product of R^N."""
        return (u * v).sum(-1, keepdim=True) if self.batched else torch.dot(u, v).item()

    def dots(self, stack: Float[Tensor, "k N"], v: Rows) -> list[float]:
        """`dot` of v with each of a stack, of one problem."""
        numbers: list[float] = torch.mv(stack, v).tolist()
        return numbers

    def combined(self, a: float, v: Rows, numbers: Sequence[float], across: Float[Tensor, "N k"]) -> Rows:
        """a v + the sum of number_i times column i, of one problem."""
        if v.is_cpu:  # in a third of the time of torch.tensor
            weights = torch.frombuffer(array(_CODES[v.dtype], numbers), dtype=v.dtype)
        else:
            weights = torch.tensor(numbers, dtype=v.dtype, device=v.device)
        return torch.addmv(v, across, weights, beta=a)

    def inner(self, x: Rows, u: Rows, v: Rows) -> Number:
        """<u, v> at x, summed over the pieces; of single rows, not of stacks."""
        if self.is_ambient:
            return (u * v).sum(-1, keepdim=True) if self.batched else torch.dot(u, v).item()

        def compute(x: Rows, u: Rows, v: Rows) -> Tensor:
            pieces = zip(self.pieces, self.split(x), self.split(u), self.split(v), strict=True)
            numbers = [piece.manifold.inner(*parts) for piece, *parts in pieces]
            if self.batched:  # of a batch of none reshape(0, -1) knows no size
                numbers = [n.flatten(1).sum(1, keepdim=True) if n.dim() > 1 else n[:, None] for n in numbers]
            total = sum(n if self.batched else n.sum() for n in numbers)
            # as wide as the rows, as what stands for those on which a manifold raises
            return total.expand_as(v)  # type: ignore[union-attr]

        found = self._known(compute, x, u, v)
        return found[..., :1] if self.batched else found[0].item()

    def norm(self, x: Rows, v: Rows) -> Number:
        """|v| at x."""
        if self._one is not None and self.is_ambient:
            return math.sqrt(torch.dot(v, v).item())
        squared = self.inner(x, v, v)
        return sqrt(where(squared < 0, 0.0, squared))  # NaN stays NaN

    def size(self, v: Rows) -> Number:
        """The norm of v as a row, whatever the metric."""
        return v.norm(dim=-1, keepdim=True) if self.batched else v.norm().item()

    def stride(self, x: Rows) -> Number:
        """How long a first step is: as the point, so that one vector turns by 45 degrees; 1 unless it `is_curved`."""
        if not self.is_curved:
            return x.new_ones(len(x), 1) if self.batched else 1.0
        size = self.size(x)
        return where(size > 0, size, 1.0)

    @cached_property
    def turns_as_one(self) -> bool:
        """Whether all of x turns by about the part of |x| that it moves, and `retract` takes any vector."""
        kinds = (Orthogonal, SpecialOrthogonal, Sphere, Stiefel)
        return len(self.pieces) == 1 and type(self.pieces[0].manifold) in kinds and self.is_curved and self.takes_any

    @cached_property
    def is_curved(self) -> bool:
        """Whether |x| is the measure of a turn in every part."""
        return all(is_curved(piece.manifold) for piece in self.pieces)

    def dim(self) -> int:
        """Degrees of freedom of one row, real ones."""
        return sum(
            p.manifold.dim_of_complex(p.shape) if p.dtype.is_complex else p.manifold.dim(p.shape) for p in self.pieces
        )

    def _each(self, method: Callable[..., Tensor], x: Rows, *rows: Rows) -> Rows:
        """method of every piece, of which the first argument is a point; NaN for the rows on which it raises."""
        try:
            return self._by_piece(method, x, *rows)
        except ERRORS as error:
            return self._apart(error, partial(self._by_piece, method), x, *rows)

    def _by_piece(self, method: Callable[..., Tensor], x: Rows, *rows: Rows) -> Rows:
        last = rows[-1]
        if self._one is not None and last.dim() == 1:
            found = method(self._one, self._here(x), *[r.reshape(self._shape) for r in rows])
            flat = found.reshape(-1)
            self._vector = flat, found
            return flat
        lead = last.shape[:-1]
        shapes = self._layouts.get(lead)
        if shapes is None:
            shapes = self._layouts[lead] = [piece.laid_out(lead) for piece in self.pieces]
        if self._is_one:
            return method(self.pieces[0], *[r.reshape(shapes[0]) for r in (x, *rows)]).reshape(last.shape)
        parts = zip(self.pieces, *[self._cut(r, shapes) for r in (x, *rows)], strict=True)
        return self._joined([method(*part) for part in parts], lead)

    # Of one row of one real piece, which is the common case, the last point and the last vector are kept as they are
    # laid out: they are asked for next.

    def _here(self, x: Rows) -> Tensor:
        if self._point is None or self._point[0] is not x:
            self._point = x, x.reshape(self._shape)
        return self._point[1]

    def _there(self, c: Rows) -> Tensor:
        return c.reshape(self._shape) if self._vector is None or self._vector[0] is not c else self._vector[1]

    def _apart(self, error: Exception, compute: Callable[..., Tensor], *rows: Rows) -> Tensor:
        """What raised this error, in halves: one problem that cannot go on keeps no other."""
        self.complaint = str(error)
        half = rows[-1].shape[-2] // 2 if self.batched else 0
        if not half:
            return torch.full_like(rows[-1], math.nan)
        parts = [[r[..., :half, :] for r in rows], [r[..., half:, :] for r in rows]]
        return torch.cat([self._known(compute, *part) for part in parts], -2)

    def _known(self, compute: Callable[..., Tensor], *rows: Rows) -> Tensor:
        """compute(*rows), NaN for the rows on which it raises."""
        try:
            return compute(*rows)
        except ERRORS as error:
            return self._apart(error, compute, *rows)
