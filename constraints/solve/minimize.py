"""Answers with a certificate: minimize a smooth function on a manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from manifolds.kernels.precision import exact_products

from .model import Parameters
from .points import points_of
from .result import Result
from .run import Point, Stops, Why, run, sentence
from .solver import Solver
from .space import Rows
from .starts import Starts
from .trust_region import TrustRegion


def minimize(
    f: Callable[..., Any],
    x0: Any,
    manifold: Any = None,
    *,
    solver: Solver | None = None,
    tol: float = 1e-6,
    max_steps: int = 500,
    max_seconds: float | None = None,
    callback: Callable[[Point], Any] | None = None,
    progress: bool = False,
    batched: bool = False,
    starts: int = 1,
    both_components: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Result:
    """A point x of the manifold where the Riemannian gradient of f has norm at most tol, found by going down from x0.

    f: takes a tensor on the manifold and returns a real scalar tensor, made of it with torch, smooth. Or it takes a
    dict of tensors, with a dict of starts and one of manifolds; all of them move as one point of the product.
    x0: the start; or its shape, (n, p), for a random point of this dtype on this device, of this generator. dtype and
    device are refused where no shape is given and the tensors have others.
    manifold: None with a module: `minimize(closure, model)` moves what is held by `Riemannian()` on its manifold and
    the other parameters that need a gradient freely; closure takes nothing and returns the loss.
    solver: a value; `TrustRegion()` by default, `LBFGS()`, `ConjugateGradient()` or `GradientDescent()`.
    tol: of the gradient norm. max_steps, max_seconds: not converged after these, which the result says.
    callback: called with a `Point` at the start and after every step; it stops the solver by returning True.
    progress: one line on stderr while it runs.
    batched: the leading axis of x0 counts B independent problems: f takes all of them and returns (B,) values, one for
    each, and each has a step and an end of its own.
    starts: k starts at once, x0 and k - 1 random ones (k random ones for a shape); the result is the best, with
    `values_of_starts`. both_components: also from the mirror image of each factor on O(n), at most four of them.

    Descent finds a point where the gradient vanishes; that it is the least one, only the problem can say.
    Raises ValueError where x0 is not on the manifold, or f is no function as above. Where f is not finite at any start,
    the value is NaN or Inf, `converged` is False, and `reason` says so.

    >>> c = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    >>> found = minimize(lambda x: -(x * (c @ x)).sum(), (4, 2), Stiefel, dtype=c.dtype)
    >>> found.converged, round(found.value, 9)
    (True, -5.0)
    """
    if max_seconds is not None:
        _positive("max_seconds", max_seconds)
    stops = Stops(_positive("tol", tol), _count("max_steps", max_steps, 0), max_seconds, callback, progress)
    solver = TrustRegion() if solver is None else solver
    if not isinstance(solver, Solver):
        raise TypeError(f"solver is a value such as TrustRegion() or LBFGS(memory=20); got {solver!r}.")
    if isinstance(x0, nn.Module):
        drawn = (generator, dtype, device) != (None, None, None)
        if manifold is not None or batched or starts != 1 or both_components or drawn:
            raise ValueError(
                "minimize(closure, model) takes its manifolds and its start from the model: leave out manifold, "
                "batched, starts, both_components, generator, dtype and device."
            )
        return _of_model(f, x0, solver, stops)
    given = points_of(x0, manifold, generator=generator, dtype=dtype, device=device)
    with torch.no_grad(), exact_products(next(iter(given.points.values())).device.type):
        plan = Starts(given, batched, _count("starts", starts, 1), both_components, generator)
        problem = plan.problem(f)
        done = run(problem, solver, plan.rows, stops, plan.whole)
        return plan.result(problem, done, stops)


def _of_model(closure: Callable[[], Any], model: nn.Module, solver: Solver, stops: Stops) -> Result:
    parameters = Parameters.of(model)

    def whole(rows: Rows) -> nn.Module:
        parameters.put(rows)
        return model

    with torch.no_grad(), exact_products(parameters.rows.device.type):
        try:
            problem = parameters.problem(closure)
            done = run(problem, solver, parameters.rows, stops, whole)
        except BaseException:
            parameters.put(parameters.rows)
            raise
        parameters.put(done.state.x)
    state, why = done.state, done.why
    return Result(
        x=model,
        value=state.value,
        gradient_norm=state.norm,
        steps=int(done.steps),
        evaluations=problem.counts,
        converged=why == Why.CONVERGED,
        reason=sentence(problem, [why], state.norm, int(done.steps), stops, state.memory.get("curvature")),
        history=done.history,
        curvature=state.memory.get("curvature"),
    )


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} is larger than 0; got {value}.")
    return value


def _count(name: str, value: int, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is a whole number, at least {least}; got {value!r}.")
    return value
