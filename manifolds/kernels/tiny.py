"""Products of many tiny square matrices, kept batch last: entry (i, j) of all of them is one vector.

torch.bmm on CPU multiplies matrices below 8 x 8 number by number, and reads them transposed as slowly. With the batch
last in memory each number of the product is a few operations on long vectors: 2 to 5 times faster. `batch_last` puts
matrices in that order, where they are many and tiny; what computes here follows the order that it finds. `tiled` cuts
the batch into tiles, each batch last by itself, so that a thread finds what it wrote last in its own cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .transforms import is_recorded, is_traced

SIDE = 8  # below this torch.bmm does not call a BLAS
MANY = 512  # from so many on, vectors are worth their calls
SMALL = 4  # up to this size a product is two passes over memory, on an accelerator
FEW = 2**13  # fewer numbers than this: a call of torch takes longer than its arithmetic
TILE = 1024  # matrices in a tile, or more, for it to be worth its calls
LARGE = 384  # from this size on, a product of one matrix keeps all threads busy
ACROSS = 256  # from this size on, a column is slower to read than to write a row

Matrices = Inexact[Tensor, "*batch n p"]


def is_many_tiny(shape: Sequence[int], *, on_cpu: bool) -> bool:
    """Whether matrices of this shape are best kept batch last."""
    if len(shape) < 3 or not 1 < shape[-1] < SIDE or shape[-1] != shape[-2]:
        return False
    return on_cpu and math.prod(shape[:-2]) >= MANY and not torch.compiler.is_dynamo_compiling()


def batch_last(a: Matrices) -> Matrices:
    """The same matrices, batch last in memory where they are many and tiny."""
    if a.shape[-1] >= SIDE or is_batch_last(a) or not is_many_tiny(a.shape, on_cpu=a.is_cpu):
        return a
    return a.movedim((-2, -1), (0, 1)).contiguous().movedim((0, 1), (-2, -1))


def is_batch_last(a: Matrices) -> bool:
    """Whether the batch of tiny matrices is last in memory, as it may be of a few too."""
    return 1 < a.shape[-1] < SIDE and a.dim() > 2 and a.stride(-3) == 1


def tiles(count: int) -> int:
    """Into how many equal tiles so many matrices are cut: one for each thread, or up to four; 1 where none fit."""
    threads = torch.get_num_threads()
    return next((k for k in range(threads, min(4 * threads, count // TILE) + 1) if count % k == 0), 1)


def tiled(a: Float[Tensor, "*batch n n"], count: int) -> Float[Tensor, "tiles b n n"]:
    """The same matrices in so many tiles, each batch last in memory."""
    n = a.shape[-1]
    b = a.numel() // (count * n * n)
    return _transposed(a, count, b, n * n).reshape(count, n, n, b).permute(0, 3, 1, 2)


def untiled(a: Float[Tensor, "tiles b n n"], shape: Sequence[int]) -> Float[Tensor, "*batch n n"]:
    """What is in tiles, in this shape, batch first in memory."""
    count, b, n, _ = a.shape
    return _transposed(a.permute(0, 2, 3, 1), count, n * n, b).reshape(shape)


def transposed(a: Float[Tensor, "B n p"]) -> Float[Tensor, "B p n"]:
    """A^T, contiguous."""
    count, n, p = a.shape
    return _transposed(a, count, n, p).reshape(count, p, n)


def _transposed(a: Tensor, count: int, n: int, p: int) -> Float[Tensor, "1 count 1 size"]:
    """The so many matrices of n x p that A consists of, one after the other, transposed.

    Swapping two axes is what a shuffle of channels does, with vector instructions on CPU: of an image of count x 1
    pixels, channels last in memory, with a channel for each number of a matrix and a group for each row.
    """
    image = a.reshape(1, count, 1, n * p).permute(0, 3, 1, 2)
    return torch.channel_shuffle(image, n).permute(0, 2, 3, 1)


def in_order_of(a: Matrices, like: Matrices) -> Matrices:
    """The same matrices, batch last in memory if it is in `like`, else contiguous."""
    if is_batch_last(like) and is_batch_last(last := batch_last(a)):
        return last
    return a.contiguous()


def product(
    a: Inexact[Tensor, "*batch n k"], b: Inexact[Tensor, "*batch k p"], c: Matrices | None = None, alpha: float = 1
) -> Matrices:
    """alpha A B; C + alpha A B where C is given."""
    if is_batch_last(a) and is_batch_last(b) and a.dim() == b.dim() and (c is None or c.dim() == a.dim()):
        columns, rows = a.chunk(a.shape[-1], -1), b.chunk(b.shape[-2], -2)
        if c is None and alpha == 1:
            y = columns[0] * rows[0]
        else:
            y = torch.addcmul(a.new_zeros(()) if c is None else c, columns[0], rows[0], value=alpha)
        for column, row in zip(columns[1:], rows[1:], strict=True):
            y.addcmul_(column, row, value=alpha)
        return y
    if _is_slow_in_bmm(a, b):
        y = (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
        y = y if alpha == 1 else y.mul_(alpha)
    elif a.dim() != 3 or a.shape != b.shape:
        y = a @ b if alpha == 1 else alpha * (a @ b)
    elif _waits_in_bmm(a, b):
        y = _one_by_one(a, b, alpha)
    elif alpha == 1:
        y = torch.bmm(a, b)
    else:
        y = torch.baddbmm(a, a, b, beta=0, alpha=alpha)  # with 0 its first argument is not read
    if c is None:
        return y
    # baddbmm would copy C first; this is as fast for large matrices and faster for small ones
    return y.add_(c) if y.shape == c.shape else y + c


def _is_slow_in_bmm(a: Tensor, b: Tensor) -> bool:
    """Many matrices up to 4 x 4 on an accelerator, whose bmm takes ten times as long as two passes over memory."""
    return not a.is_cpu and a.shape[-1] <= SMALL and a.dim() == 3 and a.shape == b.shape and len(a) >= MANY


def _waits_in_bmm(a: Tensor, b: Tensor) -> bool:
    """Few large matrices on CPU, which bmm deals out to threads whole: three to two threads take as long as four."""
    if is_traced() or torch._C._is_tracing() or a.shape[-1] < LARGE or not type(a) is type(b) is Tensor or not a.is_cpu:
        return False
    threads = torch.get_num_threads()
    return 1 < len(a) < 4 * threads and len(a) % threads != 0 and not is_recorded(a) and not is_recorded(b)


def _one_by_one(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    y = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    for left, right, to in zip(a, b, y, strict=True):
        torch.addmm(to, left, right, beta=0, alpha=alpha, out=to)
    return y


def norms(a: Matrices, keepdim: bool = False) -> Float[Tensor, "*batch"]:
    """|A|, one number for each matrix."""
    if is_batch_last(a):  # vector_norm would go through the batch once for every matrix
        square: Tensor = (a.conj() * a).real if a.is_complex() else a * a
        return square.sum((-2, -1), keepdim).sqrt_()
    return torch.linalg.vector_norm(a, dim=(-2, -1), keepdim=keepdim)  # type: ignore[no-any-return]


def largest_norm(a: Matrices) -> float:
    """The largest |A| of the matrices; 0 for none."""
    if not a.numel():
        return 0.0
    alone = a.numel() == a.shape[-1] * a.shape[-2]
    return float((torch.linalg.vector_norm(a) if alone else norms(a).max()).item())


def skew_squares(a: Matrices, by: float = 1.0) -> Float[Tensor, "*batch"]:
    """by |A|^2 of skew A, one number for each matrix."""
    n = a.shape[-1]
    if n > 3 or not is_batch_last(a) or a.is_complex():
        square = norms(a).square_()
        return square if by == 1 else square.mul_(by)
    entries = a.flatten(-2).unbind(-1)  # those above the diagonal are enough
    total = entries[1] * entries[1]
    if n == 3:
        total.addcmul_(entries[2], entries[2]).addcmul_(entries[5], entries[5])
    return total if by == 0.5 else total.mul_(2 * by)


def total_norm(a: Inexact[Tensor, "..."]) -> float:
    """|A| over all entries of all matrices; Inf where it overflows, or the square of that of many."""
    if a.numel() < FEW:  # one call in place of three
        return float(torch.linalg.vector_norm(a).item())
    flat = a if a.is_contiguous() else a.movedim(-3, -1) if is_batch_last(a) else a
    if a.is_complex() or not flat.is_contiguous():
        return float(torch.linalg.vector_norm(a))
    flat = flat.view(-1)
    return math.sqrt(torch.dot(flat, flat).item())  # half the time of vector_norm


def skew_product(x: Matrices, g: Matrices, by: float) -> Matrices:
    """by (X^H G - G^H X), of square matrices."""
    if is_slow_across(x):
        a = product(x.mT, g, alpha=-by)
        return transposed(a).sub_(a)
    a = product(x.mH, g, alpha=by)
    return a - a.mH


def is_slow_across(a: Tensor) -> bool:
    """Whether to write A^T first is faster than to read A across: of matrices that are many and tiny, or large."""
    n = a.shape[-1]
    if not ((n <= 12 and a.numel() >= MANY * n * n) or n >= ACROSS):
        return False
    return a.dim() == 3 and a.dtype == torch.float32 and a.is_contiguous() and a.is_cpu
