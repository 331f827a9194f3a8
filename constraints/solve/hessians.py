"""Products of a tangent vector with the Hessian, as functions (evaluation) -> (v -> Hess f(x)[v]), passed as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manifolds._points import probing
from manifolds.kernels.steps import is_wide

from .derivative import derivative
from .numbers import any_, eps_of, larger, over, where
from .problem import Evaluation
from .solver import reach
from .space import Rows

Product = Callable[[Rows], Rows]
Hessian = Callable[[Evaluation], Product]


def exact(at: Evaluation) -> Product:
    """The Riemannian Hessian for ambient metrics, else the Hessian of the `pullback`; neither is approximated.

    With the metric of the ambient space, Hess f(x)[v] = P_x D(grad f)(x)[v] with grad f(x) = P_x(g(x)), g the
    Euclidean gradient. It is symmetric on T_x, so that the product with D(grad f) may be taken from the left: P_x of
    the derivative of <grad f(x), v> by x, v held fixed. The graph of grad f is made once for each x, and a product is
    one pass backward through it: no retraction. With a retraction of second order the two are equal. On Stiefel and
    O(n) the pass is through g alone: P_x(D g(x)[v] - v S), see `Piece.straightener`.

    Source: Boumal (2023), corollary 5.16, and proposition 5.44 for the equality; Absil, Mahony & Trumpf (2013).
    """
    space = at.problem.space
    if not space.is_ambient:
        return pullback(at)
    at = _twice(at)
    field, straighteners = [], []
    for piece, leaf, g in zip(space.pieces, at.leaves, at.slopes, strict=True):
        s = piece.straightener(leaf.detach(), g.detach())
        with torch.enable_grad():
            field.append(g if s is not None else piece.manifold.gradient(leaf, g))
        straighteners.append(s)
    return _product(at, [(field, at.leaves)], straighteners)


def pullback(at: Evaluation) -> Product:
    """The Hessian of v -> f(R_x(v)) at v = 0, for every metric and every retraction.

    With g the Euclidean gradient at x, D^2 (f o R_x)(0)[v] = D^2 f(x)[v] + D^2 <g, R_x>(0)[v], of which the metric
    makes a tangent vector. With a retraction of second order it is the Riemannian Hessian, with others it is at
    critical points. The graph of the retraction is made once for each x; a product is one pass backward through it.

    Source: Boumal (2023), section 5.10.
    """
    space = at.problem.space
    at = _twice(at)
    slopes = at.slopes
    with torch.enable_grad():
        steps = [torch.zeros_like(part).requires_grad_() for part in space.split(at.x)]
        pieces = zip(space.pieces, space.split(at.x), steps, strict=True)
        reached = [piece.manifold.retract(x, v) for piece, x, v in pieces]
        found = derivative(reached, [g.detach() for g in slopes], steps, twice=True)
    bends = [torch.zeros_like(v) if b is None else b for b, v in zip(found, steps, strict=True)]
    return _product(at, [(slopes, at.leaves), (bends, steps)])


def _twice(at: Evaluation) -> Evaluation:
    """at, with a graph that knows second derivatives. ValueError where a gradient of f changes, which autograd takes
    for constant: of a Function whose backward is `once_differentiable` it knows no second one, and says nothing.
    Asked once, and only where f seems to be linear."""
    problem, space, x, slopes = at.problem, at.problem.space, at.x, at.slopes
    linear = [i for i, g in enumerate(slopes) if not g.requires_grad]
    if not linear or problem.seen_linear:
        return at
    eps = eps_of(x.dtype)
    generator = probing(x.device)
    v = space.project(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
    size = space.size(v)
    y, good = reach(problem, x, v, size > 0, eps ** (1 / 3) * over(larger(space.size(x), 1.0), size))
    if not any_(good):
        return at
    problem.seen_linear = True
    there = problem.at(y).slopes
    for i in linear:
        if float((there[i] - slopes[i]).norm()) > 1e3 * eps * float(slopes[i].norm()):
            raise ValueError(
                f"torch differentiates f only once: its gradient by {space.pieces[i]} changes, and autograd takes it "
                f"for constant, as behind a Function that is once_differentiable, or where f is random. Use "
                f"TrustRegion(hessian=hessians.finite_difference), or LBFGS()."
            )
    return at if problem.keeps_graphs else problem.at(x)


def finite_difference(at: Evaluation) -> Product:
    """(T grad f(R_x(hv)) - grad f(x)) / h with T the transport back to x: a retraction and a gradient for each product,
    right to half the digits where the metric is that of the ambient space, with other metrics at critical points only.
    For f that torch differentiates only once. h |v| = eps^(1/2) |x| where |x| measures a turn in every part, as on
    Stiefel, else eps^(1/2) max(1, |x|)."""
    space, problem, x = at.problem.space, at.problem, at.x
    gradient = at.gradient
    size = torch.finfo(x.dtype).eps ** 0.5 * (space.stride(x) if space.is_curved else larger(space.size(x), 1.0))

    def times(v: Rows) -> Rows:
        problem.counts.hessians += 1
        length = space.size(v)
        h = over(size, where(length > 0, length, 1.0))
        y = space.retract(x, v * h)
        quotient: Rows = (space.transport(y, x, problem.at(y).gradient) - gradient) / h
        return quotient

    return times


def _product(
    at: Evaluation,
    fields: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    straighteners: Sequence[Tensor | None] = (),
) -> Product:
    """v -> the gradient that the metric makes of the sum over (field, inputs) of the derivatives of <field, v>, less
    v S where there is an S."""
    space, problem = at.problem.space, at.problem
    known = [([i for i, part in enumerate(field) if part.requires_grad], field, inputs) for field, inputs in fields]
    bent = [(i, s) for i, s in enumerate(straighteners) if s is not None]

    def times(v: Rows) -> Rows:
        problem.counts.hessians += 1
        parts = space.split(space.vector(at.x, v))
        sums: list[Tensor | None] = [None] * len(parts)
        for indices, field, inputs in known:
            if indices:
                outputs, weights = [field[i] for i in indices], [parts[i] for i in indices]
                found = derivative(outputs, weights, inputs, keep=True)
                sums = [a if b is None else b if a is None else a + b for a, b in zip(sums, found, strict=True)]
        total = [p.new_zeros(p.shape) if g is None else g for g, p in zip(sums, parts, strict=True)]
        for i, s in bent:
            total[i] = total[i] - (s @ parts[i] if is_wide(parts[i]) else parts[i] @ s)
        return space.gradient(at.x, space.join(total))

    return times
