"""Kernels with their own derivatives: finite everywhere, batched, real and complex, differentiable twice.

torch's batched LU on CPU returns wrong pivots for n >= 256 after torch.set_num_threads; nothing here calls it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .iterations import inverse_sqrt_by_products, inverse_sqrt_in_basis, lyapunov_by_products
from .precision import without_autocast
from .tiny import FEW, batch_last, in_order_of, is_slow_across, largest_norm, product, transposed
from .transforms import in_forward_mode, is_transformed
from .transforms import is_traced as is_traced

LU_BATCH = 128  # from this size on, LU on CPU runs matrix by matrix

Square = Inexact[Tensor, "*batch p p"]


def skew(a: Square) -> Square:
    """(A - A^H) / 2. Its derivative is itself: two passes over memory, where torch would take four."""
    if a.requires_grad and not is_traced() and not in_forward_mode():
        return _Skew.apply(a)  # type: ignore[no-any-return, no-untyped-call]
    return _skew(a)


def _skew(a: Square) -> Square:
    if is_slow_across(a) and not is_transformed(a):
        return transposed(a).sub_(a).mul_(-0.5)
    return (a - a.mH).mul_(0.5)


def sym(a: Square) -> Square:
    """(A + A^H) / 2."""
    return (a + a.mH).mul_(0.5)


def eye_like(a: Square) -> Square:
    """The identity of the size, dtype and device of A."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def orthogonality_error(x: Inexact[Tensor, "*batch n p"]) -> Float[Tensor, "*batch"]:
    """max |X^H X - I|, or max |X X^H - I| for n < p; NaN where X has a NaN."""
    gram = x.mH @ x if x.shape[-2] >= x.shape[-1] else x @ x.mH
    return (gram - eye_like(gram)).abs().amax((-2, -1))


def newton_schulz(x: Inexact[Tensor, "*batch n p"]) -> Inexact[Tensor, "*batch n p"]:
    """X (3I - X^H X) / 2: orthogonality error e becomes 3/4 e^2. Two products."""
    if x.shape[-2] < x.shape[-1]:
        return 1.5 * x - (x @ x.mH).mul(0.5) @ x
    kept, x = x, batch_last(x)
    return in_order_of(product(x, product(x.mH, x), 1.5 * x, -0.5), kept)


def inverse_sqrt(s: Square) -> Square:
    """S^(-1/2) for Hermitian positive definite S; its derivative is a Lyapunov solve, finite at S = I.

    By its series where S is near I, else by eigh; on accelerators, which would have to be waited for, by products only.
    """
    if in_forward_mode():
        return _inverse_sqrt(s)
    return _InverseSqrt.apply(s)[0]  # type: ignore[no-any-return, no-untyped-call]


def inverse_sqrt_defect(e: Square, looks: bool = False) -> Square | None:
    """T = E - 3 E^2/4 + ..., (I + E)^(-1/2) = I - T/2, where E is so small that 8 terms reach rounding; else None.
    No derivatives. looks: it is known that values may be looked at."""
    if not (looks or may_look(e)) or not e.numel():
        return None
    norm = torch.linalg.vector_norm(e).item() if e.numel() < FEW else largest_norm(e)  # a call takes longer than a term
    if (terms := geometric_terms(norm, e.dtype)) > 8:
        return None
    t, is_one = e, e.dim() == 3 and e.shape[0] == 1
    for k in range(terms, 1, -1):  # the k-th coefficient is -(2k - 1) / (2k) times the one before
        by = (1 - 2 * k) / (2 * k)
        t = torch.baddbmm(e, e, t, alpha=by) if is_one else product(e, t, e, by)
    return t


def geometric_terms(norm: float, dtype: torch.dtype) -> int:
    """How many powers of something of this norm there are above rounding; many if it is not small."""
    if norm == 0:
        return 0
    if not norm < 0.5:  # also where it is NaN
        return 1000
    return max(1, math.ceil(_log_of_rounding(dtype) / math.log(norm)) - 1)


@functools.cache
def _log_of_rounding(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).eps / 4)


def lyapunov(y: Square, c: Square) -> Square:
    """The Hermitian Z with Y Z + Z Y = C, for Hermitian positive definite Y and Hermitian C.

    By eigh; on accelerators by products only.
    """
    values, q = (y.new_empty(0), y.new_empty(0)) if on_accelerator(y) else torch.linalg.eigh(y.detach())
    return _Lyapunov.apply(y, c, values, q)  # type: ignore[no-any-return, no-untyped-call]


def cholesky(s: Square) -> Square:
    """L with L L^H = S. On accelerators, which torch would wait for to raise an error, NaN where there is none."""
    if not on_accelerator(s):
        return torch.linalg.cholesky(s)  # type: ignore[no-any-return]
    factor, info = torch.linalg.cholesky_ex(s)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def solve_definite(b: Inexact[Tensor, "*batch p q"], factor: Square) -> Inexact[Tensor, "*batch p q"]:
    """S^-1 B for S = L L^H and its factor L. What `torch.cholesky_solve` does to a batch no CUDA graph captures."""
    half = torch.linalg.solve_triangular(factor, b, upper=False)
    return torch.linalg.solve_triangular(factor.mH, half, upper=True)  # type: ignore[no-any-return]


def on_accelerator(x: Tensor) -> bool:
    """Whether to look at a value is to wait for it, and to factorize is slow."""
    return not x.is_cpu


def may_look(x: Tensor) -> bool:
    """Whether values may decide: an accelerator would have to be waited for, and a graph has none."""
    return x.is_cpu and not is_traced()


def may_wait(x: Tensor) -> bool:
    """Whether values may decide where an accelerator may be waited for, as for eigenvalues it is in any case: not in
    what a graph records. A step of an optimizer and a trivialized weight never wait: they ask `may_look`."""
    return not (is_traced() or x.is_meta or (x.is_cuda and torch.cuda.is_current_stream_capturing()))


def may_overwrite(x: Tensor) -> bool:
    """Whether results may be written into given memory: nothing is recorded, and x is one tensor."""
    return not torch.is_grad_enabled() and not in_forward_mode() and not is_transformed(x)


def _inverse_sqrt(s: Tensor) -> Tensor:
    """S^(-1/2) as torch derives it."""
    return inverse_sqrt_by_products(s) if on_accelerator(s) else inverse_sqrt_in_basis(s)


class _Skew(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return _skew(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return skew(grad)

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor) -> tuple[Tensor, int]:
        return skew(a.movedim(in_dims[0], 0)), 0


class _InverseSqrt(torch.autograd.Function):
    @staticmethod
    def forward(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if on_accelerator(s):
            return inverse_sqrt_by_products(s), s.new_empty(0), s.new_empty(0)
        eye = eye_like(s)
        t = inverse_sqrt_defect(s - eye)
        if t is not None:
            return torch.sub(eye, t, alpha=0.5), s.new_empty(0), s.new_empty(0)
        values, q = torch.linalg.eigh(s)
        return (q * values.rsqrt().unsqueeze(-2)) @ q.mH, values, q

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        # R = Y^-1 with Y^2 = S: dR = -R dY R and Y dY + dY Y = dS; the solve is its own adjoint
        s, r, values, q = ctx.saved_tensors
        if in_forward_mode():
            return torch.func.vjp(_inverse_sqrt, s)[1](grad)[0]  # type: ignore[no-any-return]
        y, c = s @ r, -r @ sym(grad) @ r
        if not values.numel():
            return lyapunov(y, c)
        return _Lyapunov.apply(y, c, values.sqrt(), q)  # type: ignore[no-any-return, no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: Any, s: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _InverseSqrt.apply(s.movedim(in_dims[0], 0))  # type: ignore[no-untyped-call]
        return tuple(t if t.numel() else t.expand(info.batch_size, 0) for t in outputs), (0, 0, 0)


class _Lyapunov(torch.autograd.Function):
    """Y Z + Z Y = C, given eigenvalues and eigenvectors of Y: hints without derivatives, empty on accelerators."""

    @staticmethod
    def forward(y: Tensor, c: Tensor, values: Tensor, q: Tensor) -> Tensor:
        if not values.numel():
            return lyapunov_by_products(y, c)
        return q @ ((q.mH @ c @ q) / (values.unsqueeze(-1) + values.unsqueeze(-2))) @ q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        y, _, values, q = inputs
        ctx.save_for_backward(y, output, values, q)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, values, q = ctx.saved_tensors
        c_bar = _Lyapunov.apply(y, sym(grad), values, q)  # type: ignore[no-untyped-call]
        return -2 * sym(c_bar @ z), c_bar, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> tuple[Tensor, int]:
        batched = [
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(inputs, in_dims, strict=True)
        ]
        return _Lyapunov.apply(*batched), 0  # type: ignore[no-untyped-call]
