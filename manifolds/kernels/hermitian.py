"""exp, log and square root of Hermitian matrices, f(S) = Q f(D) Q^H, with finite derivatives where eigenvalues meet.

The derivative is that of Daleckii and Krein, Df(S)[E] = Q (F o Q^H E Q) Q^H, where F holds the divided differences of f
at pairs of eigenvalues, each by a formula that is right where the two are equal. Second derivatives and those of
transforms are those of a definition without eigenvectors: the series of exp, and Newton steps from a constant start for
the others, each right to one order more, as in `polar`. Only the Hermitian part of S is seen.
Source: Higham, Functions of Matrices (2008), sections 3.2, 6.2 and 11.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import linalg
from .iterations import ORDER
from .linalg import is_traced, sym
from .precision import without_autocast
from .transforms import in_forward_mode, is_recorded, is_transformed

Square = Inexact[Tensor, "*batch n n"]
Values = Float[Tensor, "*batch n"]
Of = Callable[[Values], Tensor]
Map = Callable[[Tensor], Tensor]


class Function(Protocol):
    """f(S); known: eigenvalues and eigenvectors, where the caller has them better than eigh would."""

    def __call__(self, s: Square, known: tuple[Values, Square] | None = None) -> Square: ...


def exp_pairs(d: Values) -> Float[Tensor, "*batch n n"]:
    """(e^a - e^b) / (a - b) = e^max (1 - e^-t) / t with t = |a - b|."""
    a, b = d.unsqueeze(-1), d.unsqueeze(-2)
    t = (a - b).abs()
    one = t == 0
    return torch.maximum(a, b).exp() * torch.where(one, 1, -torch.expm1(-t) / torch.where(one, 1, t))


def log_pairs(d: Values) -> Float[Tensor, "*batch n n"]:
    """(log a - log b) / (a - b) = log(1 + t / min) / t with t = |a - b|."""
    a, b = d.unsqueeze(-1), d.unsqueeze(-2)
    t, least = (a - b).abs(), torch.minimum(a, b)
    one = t == 0
    return torch.where(one, 1 / least, torch.log1p(t / least) / torch.where(one, 1, t))


def sqrt_pairs(d: Values) -> Float[Tensor, "*batch n n"]:
    """1 / (sqrt a + sqrt b)."""
    root = d.sqrt()
    return 1 / (root.unsqueeze(-1) + root.unsqueeze(-2))


def eigen(s: Square) -> tuple[Values, Square]:
    """Eigenvalues and eigenvectors of the Hermitian part, as constants."""
    values, q = torch.linalg.eigh(sym(s.detach()))
    return values, q


def definite(x: Square) -> tuple[Values, Square]:
    """`eigen` of a positive definite matrix: where rounding makes an eigenvalue 0 or less, eps times the largest."""
    values, q = eigen(x)
    return torch.where(values > 0, values, torch.finfo(values.dtype).eps * values[..., -1:]), q


def rebuilt(values: Values, q: Square) -> Square:
    """Q diag(values) Q^H."""
    return (q * values.unsqueeze(-2)) @ q.mH


def weighted(q: Square, weights: Float[Tensor, "*batch n n"], e: Square) -> Square:
    """Q (weights o Q^H E Q) Q^H for the Hermitian part of E."""
    return sym(q @ (weights * (q.mH @ sym(e) @ q)) @ q.mH)


def _exp(s: Square, values: Values, q: Square) -> Square:
    y: Tensor = torch.linalg.matrix_exp(sym(s))
    return rebuilt(values.exp(), q) + (y - y.detach())


def _log(s: Square, values: Values, q: Square) -> Square:
    return _solved(rebuilt(values.log(), q), q, log_pairs(values), lambda y: sym(s) - torch.linalg.matrix_exp(y))


def _sqrt(s: Square, values: Values, q: Square) -> Square:
    return _solved(rebuilt(values.sqrt(), q), q, sqrt_pairs(values), lambda y: sym(s) - y @ y)


def _solved(y: Square, q: Square, pairs: Float[Tensor, "*batch n n"], error: Map) -> Square:
    for _ in range(ORDER):
        step = weighted(q, pairs, error(y))
        y = y + (step - step.detach())  # of which the value is rounding
    return y


def _function(of: Of, pairs: Of, plain: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Function:
    """f with these values and divided differences, whose definition is `plain`."""

    class Applied(torch.autograd.Function):
        @staticmethod
        def forward(s: Tensor, values: Tensor, q: Tensor) -> Tensor:
            return sym(rebuilt(of(values), q))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        @without_autocast
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            s, values, q = ctx.saved_tensors
            if torch.is_grad_enabled() or in_forward_mode() or is_transformed(grad):
                return torch.func.vjp(lambda t: plain(t, values, q), s)[1](grad)[0], None, None
            return weighted(q, pairs(values), grad), None, None

        @staticmethod
        def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> tuple[Tensor, int]:
            moved = (t if d is None else t.movedim(d, 0) for t, d in zip(inputs, in_dims, strict=True))
            return Applied.apply(*moved), 0  # type: ignore[no-untyped-call]

    def function(s: Tensor, known: tuple[Values, Square] | None = None) -> Tensor:
        values, q = eigen(s) if known is None else known
        if is_traced() or in_forward_mode():
            return plain(s, values, q)
        return Applied.apply(s, values, q)  # type: ignore[no-any-return, no-untyped-call]

    return function


def positive(d: Values) -> Values:
    """t + (1 + t^2)^1/2, without cancellation for t < 0."""
    root = (1 + d * d).sqrt()
    return torch.where(d > 0, d + root, 1 / (root - torch.where(d > 0, 0, d)))


def _positive_pairs(d: Values) -> Float[Tensor, "*batch n n"]:
    """1 + (a + b) / ((1 + a^2)^1/2 + (1 + b^2)^1/2)."""
    root = (1 + d * d).sqrt()
    return 1 + (d.unsqueeze(-1) + d.unsqueeze(-2)) / (root.unsqueeze(-1) + root.unsqueeze(-2))


def _above(s: Square, values: Values, q: Square) -> Square:
    s = sym(s)
    one = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    y = s + _sqrt(one + s @ s, 1 + values * values, q)
    return rebuilt(positive(values), q) + (y - y.detach())


exp = _function(torch.exp, exp_pairs, _exp)
log = _function(torch.log, log_pairs, _log)
sqrt = _function(torch.sqrt, sqrt_pairs, _sqrt)
above = _function(positive, _positive_pairs, _above)
"""S + (I + S^2)^1/2: I + S to first order, and positive definite for every S."""


def log_of_gram(a: Square) -> Square:
    """log(A A^H), by singular values: eigenvalues of A A^H would have half of the digits."""
    u, values, _ = torch.linalg.svd(a.detach())
    return log(a @ a.mH, (values.square(), u))


def sqrt_of_gram(a: Square) -> Square:
    """(A A^H)^1/2, by singular values too; no square under- or overflows."""
    scale = a.detach().abs().amax((-2, -1), keepdim=True)
    a = a / torch.where(scale == 0, 1, scale)
    u, values, _ = torch.linalg.svd(a.detach())
    return scale * sqrt(a @ a.mH, (values.square(), u))


def log_at(x: Square, e: Square) -> Square:
    """Dlog(X)[E]."""
    if not is_recorded(x):
        values, q = eigen(x)
        return weighted(q, log_pairs(values), e)
    return torch.func.vjp(log, x)[1](e)[0]  # type: ignore[no-any-return]  # self-adjoint


def exp_at(x: Square, e: Square) -> Square:
    """Dexp(log X)[E], the inverse of `log_at`."""
    if not is_recorded(x):
        values, q = eigen(x)
        return weighted(q, 1 / log_pairs(values), e)
    return torch.func.vjp(exp, log(x))[1](e)[0]  # type: ignore[no-any-return]


def lyapunov(x: Square, c: Square) -> Square:
    """The Hermitian Z with X Z + Z X = C, for positive definite X and the Hermitian part of C."""
    values, q = definite(x)
    pairs = 1 / (values.unsqueeze(-1) + values.unsqueeze(-2))
    z = weighted(q, pairs, c)
    if is_recorded(x):
        x = sym(x)
        for _ in range(ORDER):
            step = weighted(q, pairs, c - x @ z - z @ x)
            z = z + (step - step.detach())
    return z


def cholesky(x: Square) -> Square:
    """L with L L^H = X, of which only the Hermitian part is seen: forward derivatives of torch's would see another."""
    return linalg.cholesky(sym(x) if is_recorded(x) else x)
