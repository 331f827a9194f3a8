"""Products of many tiny square matrices, kept batch last: entry (i, j) of all of them is one vector.

torch.bmm on CPU multiplies matrices below 8 x 8 number by number, and reads them transposed as slowly. With the batch
last in memory each number of the product is a few operations on long vectors: 2 to 5 times faster. `batch_last` puts
matrices in that order, where they are many and tiny; `product` and `norms` follow the order that they find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

SIDE = 8  # below this torch.bmm does not call a BLAS
MANY = 512  # from so many on, vectors are worth their calls

Matrices = Inexact[Tensor, "*batch n p"]


def is_many_tiny(shape: Sequence[int], device: torch.device) -> bool:
    """Whether matrices of this shape are best kept batch last."""
    if device.type != "cpu" or len(shape) < 3 or shape[-1] >= SIDE or torch.compiler.is_compiling():
        return False
    return shape[-1] == shape[-2] and math.prod(shape[:-2]) >= MANY


def batch_last(a: Matrices) -> Matrices:
    """The same matrices, batch last in memory where they are many and tiny."""
    if not is_many_tiny(a.shape, a.device) or is_batch_last(a):
        return a
    return _matrices(_entries(a).contiguous())


def is_batch_last(a: Matrices) -> bool:
    """Whether the batch is last in memory."""
    return a.dim() > 2 and a.stride(-3) == 1 and is_many_tiny(a.shape, a.device)


def in_order_of(a: Matrices, like: Matrices) -> Matrices:
    """The same matrices, batch last in memory if it is in `like`, else contiguous."""
    return batch_last(a) if is_batch_last(like) else a.contiguous()


def product(
    a: Inexact[Tensor, "*batch n k"], b: Inexact[Tensor, "*batch k p"], c: Matrices | None = None, alpha: float = 1
) -> Matrices:
    """A B; C + alpha A B where C is given."""
    if is_batch_last(a) and is_batch_last(b):
        a, b = _entries(a), _entries(b)
        terms = [(a[:, k : k + 1], b[k : k + 1]) for k in range(len(b))]
        y = terms[0][0] * terms[0][1] if c is None else torch.addcmul(_entries(c), *terms[0], value=alpha)
        for left, right in terms[1:]:
            y.addcmul_(left, right, value=alpha)
        return _matrices(y)
    y = a @ b
    if c is None:
        return y
    # baddbmm would copy C first; this is as fast for large matrices and faster for small ones
    return torch.add(c, y, alpha=alpha, out=y) if y.shape == c.shape else torch.add(c, y, alpha=alpha)


def norms(a: Matrices) -> Float[Tensor, "*batch"]:
    """|A|, one number for each matrix."""
    if is_batch_last(a):  # vector_norm would go through the batch once for every matrix
        square: Tensor = (a.conj() * a).real if a.is_complex() else a * a
        return square.sum((-2, -1)).sqrt_()
    return torch.linalg.vector_norm(a, dim=(-2, -1))  # type: ignore[no-any-return]


def turned(x: Matrices, a: Matrices) -> Matrices:
    """X (I - A/2)^-1 (I + A/2) for real skew A of at most 3 x 3, batch last.

    A^3 = -t^2 A with t^2 = |A|^2 / 2, so it is X + (X + X A/2) A / (1 + t^2/4). Only the entries above the diagonal of
    A are read.
    """
    x, a = _entries(x), _entries(a)
    above = {(i, j): a[i, j] for j in range(len(a)) for i in range(j)}
    if not above:
        return _matrices(x.clone())
    scale = 1 + sum(w * w for w in above.values()) / 4
    middle = _add_skew(x, x, above, 0.5)
    return _matrices(_add_skew(x, middle, {ij: w / scale for ij, w in above.items()}, 1))


def _add_skew(c: Tensor, x: Tensor, above: dict[tuple[int, int], Tensor], alpha: float) -> Tensor:
    """C + alpha X A for the skew A with these entries above its diagonal, column by column."""
    y = torch.empty_like(c)
    for j in range(len(c)):
        column = c[:, j]
        for i in range(len(c)):
            if i != j:
                entry, sign = (above[i, j], alpha) if i < j else (above[j, i], -alpha)
                column = torch.addcmul(column, x[:, i], entry, value=sign, out=y[:, j])
    return y


def _entries(a: Matrices) -> Inexact[Tensor, "n p *batch"]:
    return a.movedim((-2, -1), (0, 1))


def _matrices(entries: Inexact[Tensor, "n p *batch"]) -> Matrices:
    return entries.movedim((0, 1), (-2, -1))
