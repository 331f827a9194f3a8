"""What a solver found, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .problem import Evaluations


@dataclass
class History:
    """One entry for the start and for each step. With several problems, which take steps each by itself: for each round
    of trials that they make at once, with the mean value, the largest norm and step.

    value: of f. norm: of the Riemannian gradient. step: its length |t d| in the metric, 0 for one that was refused.
    seconds: since the start.

    >>> history = minimize(lambda x: x[0], (3,), Sphere).history
    >>> len(history) == len(history.norm)
    True
    """

    value: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.value)

    def plot(self, axes: Any = None, **line: Any) -> Any:
        """Gradient norm over steps, on a logarithmic axis; the matplotlib axes. Raises ImportError without matplotlib.

        axes: where to draw, None for a new figure; line: options of its `plot`, as label and color.
        """
        from .figures import draw_history

        return draw_history(self, axes, line)


@dataclass(frozen=True, eq=False)
class Result:
    """The answer of `minimize`, with its certificate.

    x: the point, as x0 was given: a tensor, a dict of tensors, or the model. With batched=True value, gradient_norm,
    steps and converged are tensors (B,), one entry for each problem.
    gradient_norm: of the Riemannian gradient, in the metric: 0 exactly at first-order points.
    reason: why it stopped, in a sentence.
    curvature: the least second derivative along unit tangent vectors that `TrustRegion` saw at x, an upper bound of the
    smallest eigenvalue of the Hessian: 0 or more, but for rounding, at a minimum. NaN where products with it are not
    finite; None for other solvers, and where no problem converged.
    values_of_starts: with several starts, the value that each ended with; the others are those of the best.
    determinants: signs of the determinants, one for each factor on O(n), where they are kept from the start; None
    where no factor is one of O(n).

    >>> minimize(lambda x: x[0], (3,), Sphere, max_steps=0).converged
    False
    """

    x: Any
    value: Any
    gradient_norm: Any
    steps: Any
    evaluations: Evaluations
    converged: Any
    reason: str
    history: History
    curvature: Any = None
    values_of_starts: Tensor | None = None
    determinants: Tensor | None = None

    def __repr__(self) -> str:
        return f"Result({self.reason} {self._numbers()})"

    def _numbers(self) -> str:
        if isinstance(self.value, Tensor):
            return f"{len(self.value)} values, {self.evaluations}"
        text = f"value {self.value:.10g}, gradient norm {self.gradient_norm:.1e}, {self.evaluations}"
        if self.determinants is None or self.determinants.numel() > 8:
            return text
        # of the component that the start was on, where another may have the lower value
        return f"{text}, determinants {self.determinants.tolist()}"
