"""Newton's method where its model of f is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .hessians import Hessian, exact
from .numbers import Truth, any_, full, is_finite, larger, no, over, smaller, where
from .options import check_between, check_count, check_function, check_least
from .problem import Problem
from .saddle import least_curvature, leave
from .solver import Solver, State, moved, reach
from .space import Rows
from .truncated import minimize_model

Preconditioner = Callable[[Any, Any], Any]


@dataclass(frozen=True, repr=False)
class TrustRegion(Solver):
    """Riemannian trust regions with truncated conjugate gradients. Quadratic convergence.

    A step minimizes m(v) = f(x) + <grad f(x), v> + <v, Hv> / 2 over |v| <= radius by conjugate gradients, which stop
    at a residual of |grad| min(|grad|^theta, kappa), at negative curvature, or at the boundary. rho is the decrease of
    f over that of m; the radius is divided by 4 for rho < 1/4 and doubled for rho > 3/4 at the boundary, and the step
    is taken for rho > accept. Both decreases are enlarged by regularization eps max(1, |f|): near the answer, where
    they are differences of rounding, steps are taken.

    hessian: `hessians.exact`, `pullback` or `finite_difference`, or a function like them.
    preconditioner: (x, v) -> a tangent vector near H^-1 v, linear in v, symmetric and positive definite in the metric.
    x, v and what it returns have the form of x0, with its leading axis where batched=True; of a model they are dicts by
    the names of its parameters. With several starts it is called for each. What it returns is projected.
    radius: the first one, None for |x| on spheres, `Oblique`, `Stiefel`, O(n), `Grassmann`, `FixedRank` and products of
    these, else sqrt(dim) / 8. max_inner: products with H in one step, None for dim.
    saddle_products: where the gradient vanishes, so many products look for a direction of negative curvature, along
    which a saddle is left; 0 for not looking. The least curvature that was seen is that of the result.
    Raises ValueError for options out of range.
    Source: Absil, Baker & Gallivan (2007); Boumal (2023), section 6.4; Conn, Gould & Toint (2000), section 17.4.2.

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=TrustRegion(), dtype=a.dtype).converged
    True
    """

    hessian: Hessian = exact
    preconditioner: Preconditioner | None = None
    radius: float | None = None
    max_radius: float = math.inf
    max_inner: int | None = None
    saddle_products: int = 10
    kappa: float = 0.1
    theta: float = 1.0
    accept: float = 0.1
    regularization: float = 1e3

    needs_hessian = True

    def __post_init__(self) -> None:
        check_function(self, "as those of `hessians`", hessian=self.hessian)
        if self.preconditioner is not None:
            check_function(self, "(x, v) -> a tangent vector", preconditioner=self.preconditioner)
        check_least(self, 0, regularization=self.regularization)
        check_between(self, 0, 1, kappa=self.kappa)
        check_between(self, 0, 0.25, accept=self.accept)
        check_between(self, 0, math.inf, theta=self.theta)
        if not self.max_radius > 0:
            raise ValueError(f"max_radius of TrustRegion is larger than 0; got {self.max_radius}.")
        if self.radius is not None:
            check_between(self, 0, math.inf, radius=self.radius)
        if self.max_inner is not None:
            check_count(self, max_inner=self.max_inner)
        if self.saddle_products:
            check_count(self, saddle_products=self.saddle_products)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x = problem.space, state.x
        radius = state.memory.get("radius")
        if radius is None:
            unit = 1 if space.is_curved else math.sqrt(space.dim()) / 8
            first = space.stride(x) * unit if self.radius is None else full(state.value, self.radius)
            radius = smaller(first, self.max_radius)
        times = state.memory.get("times") or self.hessian(state.at)
        limit = self.max_inner or max(1, space.dim())
        step = minimize_model(
            problem, state, times, self._precondition(problem), radius, active, self.kappa, self.theta, limit
        )
        # near the answer, where products with H are rounding, not all of v is tangent
        v = space.project(x, step.v)
        y, good = reach(problem, x, v, active)
        at = problem.at(y)

        eps = torch.finfo(x.dtype).eps
        slack = self.regularization * eps * larger(abs(state.value), 1.0)
        rho = over(state.value - at.value + slack, step.decrease + slack)
        usable = good & is_finite(rho) & (step.decrease + slack > 0)
        taken = usable & (rho > self.accept)
        if any_(taken):  # where the gradient is not finite, a shorter step
            usable = usable & is_finite(space.size(at.gradient))
            taken = taken & usable
        length = space.norm(x, v)
        grows = usable & (rho > 0.75) & step.at_boundary
        shrinks = active & no(usable & (rho >= 0.25))
        # a step inside of the boundary would be the same for a radius that is longer than it
        new = where(shrinks, (radius if self.preconditioner else smaller(length, radius)) / 4, radius)
        new = where(grows, smaller(2 * radius, self.max_radius), new)
        # a shorter step would not change x any more
        stuck = state.stuck | (shrinks & no(new > eps * space.size(x)))

        reached = moved(problem, state, y, at, length, taken)
        reached.stuck, reached.memory = stuck, {"radius": new}
        if reached.at is state.at:
            reached.memory["times"] = times
        return reached

    def _precondition(self, problem: Problem) -> Callable[[Rows, Rows], Rows] | None:
        if self.preconditioner is None:
            return None
        return partial(problem.outside.tangent, "preconditioner", self.preconditioner, problem.space)

    def settle(self, problem: Problem, state: State, at_rest: Truth) -> tuple[State, Truth]:
        if not self.saddle_products or not problem.space.dim():
            return state, at_rest & False
        times = state.memory.get("times") or self.hessian(state.at)
        seen = least_curvature(problem, state, times, min(self.saddle_products, problem.space.dim()))
        curvature, v = seen.least, seen.v
        state.memory["curvature"] = curvature
        # less than this is rounding of products with H, or of f
        eps, stride = torch.finfo(state.x.dtype).eps, problem.space.stride(state.x)
        falls = at_rest & (curvature < -math.sqrt(eps) * seen.largest)
        falls = falls & (-curvature * stride * stride > 100 * eps * abs(state.value))
        if not any_(falls):
            return state, falls
        after = leave(problem, state, curvature, v, falls)
        if after is state:
            return state, at_rest & False
        return after, falls & (after.length > 0)
