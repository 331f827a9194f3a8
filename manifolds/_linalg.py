"""Kernels with their own derivatives: finite everywhere, batched, real and complex, differentiable twice.

torch's batched LU on CPU returns wrong pivots for n >= 256 after torch.set_num_threads; nothing here calls it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

LU_BATCH = 128  # from this size on, LU on CPU runs matrix by matrix

Square = Inexact[Tensor, "*batch p p"]


def skew(a: Square) -> Square:
    """(A - A^H) / 2."""
    return (a - a.mH) / 2


def sym(a: Square) -> Square:
    """(A + A^H) / 2."""
    return (a + a.mH) / 2


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
        return newton_schulz(x.mH).mH
    return 1.5 * x - 0.5 * x @ (x.mH @ x)


def resolvent(a: Square) -> Square:
    """(I - A/2)^-1 for skew A. One factorization in all: dP = P dA P / 2, so the backward is two products."""
    return _Resolvent.apply(a)  # type: ignore[no-any-return, no-untyped-call]


def inverse_sqrt(s: Square) -> Square:
    """S^(-1/2) for Hermitian positive definite S, by eigh; its derivative is a Lyapunov solve, finite at S = I."""
    return _InverseSqrt.apply(s)  # type: ignore[no-any-return, no-untyped-call]


def lyapunov(y: Square, c: Square) -> Square:
    """The Hermitian Z with Y Z + Z Y = C, for Hermitian positive definite Y and Hermitian C, by eigh."""
    return _Lyapunov.apply(y, c)  # type: ignore[no-any-return, no-untyped-call]


def determinant(x: Square) -> Inexact[Tensor, "*batch"]:
    """det X, by LU."""
    if x.device.type == "cpu" and x.dim() > 2 and x.shape[-1] >= LU_BATCH:
        return torch.stack([torch.linalg.det(m) for m in x.flatten(0, -3)]).reshape(x.shape[:-2])
    return torch.linalg.det(x)  # type: ignore[no-any-return]


class _Resolvent(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor) -> Tensor:
        eye = eye_like(a)
        if (
            a.device.type != "cpu"
        ):  # no LU on accelerators: (I - A/2)^-1 = (I + A/2)(I + A^H A/4)^-1, then one Newton step
            p = (eye + a / 2) @ torch.cholesky_inverse(torch.linalg.cholesky(eye + a.mH @ a / 4))
            return 2 * p - p @ (p - a @ p / 2)
        if a.dim() > 2 and a.shape[-1] >= LU_BATCH:
            flat = [torch.linalg.inv(eye - m / 2) for m in a.reshape(-1, *a.shape[-2:])]
            return torch.stack(flat).reshape(a.shape)
        return torch.linalg.inv(eye - a / 2)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (p,) = ctx.saved_tensors
        return p.mH @ grad @ p.mH / 2

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        (p,) = ctx.saved_tensors
        return p @ tangent @ p / 2

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return _Resolvent.apply(a.movedim(in_dims[0], 0)), 0  # type: ignore[no-untyped-call]


class _InverseSqrt(torch.autograd.Function):
    @staticmethod
    def forward(s: Tensor) -> Tensor:
        values, q = torch.linalg.eigh(s)
        return (q * values.rsqrt().unsqueeze(-2)) @ q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        # R = Y^-1 with Y^2 = S: dR = -R dY R and Y dY + dY Y = dS; the solve is its own adjoint
        s, r = ctx.saved_tensors
        return lyapunov(s @ r, -r @ sym(grad) @ r)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        s, r = ctx.saved_tensors
        return -r @ lyapunov(s @ r, sym(tangent)) @ r

    @staticmethod
    def vmap(info: Any, in_dims: Any, s: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return _InverseSqrt.apply(s.movedim(in_dims[0], 0)), 0  # type: ignore[no-untyped-call]


class _Lyapunov(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, c: Tensor) -> Tensor:
        values, q = torch.linalg.eigh(y)
        return q @ ((q.mH @ c @ q) / (values.unsqueeze(-1) + values.unsqueeze(-2))) @ q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y, z = ctx.saved_tensors
        c_bar = lyapunov(y, sym(grad))
        return -2 * sym(c_bar @ z), c_bar

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, dc: Tensor) -> Tensor:  # type: ignore[override]
        y, z = ctx.saved_tensors
        return lyapunov(y, sym(dc) - 2 * sym(sym(dy) @ z))

    @staticmethod
    def vmap(info: Any, in_dims: Any, y: Tensor, c: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        y, c = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((y, c), in_dims, strict=True)
        )
        return _Lyapunov.apply(y, c), 0  # type: ignore[no-untyped-call]
