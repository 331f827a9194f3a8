"""pymanopt on the two problems that it can do: conjugate gradients with a line search, no learning rate to tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .quality import Clock, Solved
from .timing import why

NAME = "pymanopt CG"


class _Reached(Exception):  # noqa: N818 - nothing went wrong
    """The goal is reached."""


def solve(
    problem: str, start: Any, cost: Callable[[Any], float], slope: Callable[[Any], Any], goal: float, clock: Clock
) -> Solved:
    """Until cost <= goal; start is a numpy array n x p, slope the Euclidean gradient; steps are gradients taken."""
    steps, begin = 0, clock()
    try:
        import pymanopt
        from pymanopt.manifolds import Stiefel
        from pymanopt.optimizers import ConjugateGradient

        manifold = Stiefel(*start.shape)

        @pymanopt.function.numpy(manifold)  # type: ignore[untyped-decorator]
        def watched(x: Any) -> float:
            value = cost(x)
            if value <= goal:
                raise _Reached
            return value

        @pymanopt.function.numpy(manifold)  # type: ignore[untyped-decorator]
        def counted(x: Any) -> Any:
            nonlocal steps
            steps += 1
            return slope(x)

        optimizer = ConjugateGradient(verbosity=0, max_iterations=1000, min_gradient_norm=0, min_step_size=0)
        begin = clock()
        optimizer.run(pymanopt.Problem(manifold, watched, euclidean_gradient=counted), initial_point=start)
    except _Reached:
        return Solved(problem, NAME, None, steps, clock() - begin, None)
    except Exception as error:
        return Solved(problem, NAME, None, None, None, None, why(error))
    return Solved(problem, NAME, None, None, None, None)
