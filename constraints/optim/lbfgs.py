"""L-BFGS with a closure, as torch.optim.LBFGS, on manifolds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manifolds import Euclidean
from manifolds.kernels.precision import exact_products

from ..riemannian import param_groups
from ..solve.lbfgs import LBFGS
from ..solve.model import Parameters
from ..solve.options import check_count, check_least
from ..solve.pairs import Pairs, no_pairs
from ..solve.points import DTYPES
from ..solve.problem import Problem
from ..solve.searches import LineSearch, StrongWolfe
from ..solve.solver import State, start
from .step.checks import Group, check_group, name_in
from .step.loading import check_kind, named
from .step.optimizer import Params

PAIRS = {"steps", "changes", "weights", "scale"}
"""The keys of the state."""


class RiemannianLBFGS(Optimizer):
    """Steps of `constraints.solve.LBFGS` on all parameters as one point of a product, constrained and free ones.

    params: a module, of which `param_groups` makes groups, or what a torch optimizer takes; groups may carry a
    "manifold". max_iter: steps of L-BFGS in one `step`; memory, caution and search: as for the solver; tolerance: of
    the gradient norm, below which nothing is done. There is no learning rate: a line search chooses.
    Pairs of steps and gradients last from `step` to `step`, as long as nothing else moves the parameters. For an answer
    with a stopping rule see `minimize(closure, model)`.
    Raises ValueError for a constrained tensor that comes without its manifold, for a value off its manifold, for
    coordinates of several precisions or devices, for sharded ones, and for a loss that is not finite: nothing is
    changed then, nor where the closure raises.
    Source: as for `constraints.solve.LBFGS`; the calling convention is that of torch.optim.LBFGS.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> optimizer = RiemannianLBFGS(layer)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = layer(torch.eye(4)).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> bool(optimizer.step(closure) >= closure())
    True
    """

    keeps_manifolds: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        max_iter: int = 20,
        *,
        memory: int = 10,
        caution: float = 1e-6,
        tolerance: float = 1e-7,
        search: LineSearch | None = None,
    ) -> None:
        self._solver = LBFGS(memory, caution, StrongWolfe() if search is None else search)
        check_count(self, max_iter=max_iter)
        check_least(self, 0, tolerance=tolerance)
        self._max_iter, self._tolerance = max_iter, tolerance
        self._left: Tensor | None = None
        super().__init__(param_groups(params) if isinstance(params, nn.Module) else params, {"manifold": None})

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; checked as those given at the start, and not added if there is anything wrong with them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(type(self).__name__, group, self.param_groups)
            for p in group["params"]:
                self._check_dtype(p)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Up to max_iter steps down; the loss before them. closure clears gradients, calls backward, returns the loss.

        Raises ValueError where the loss or its gradient is not finite at the start; nothing is changed.
        """
        parameters = self._parameters()
        rows = parameters.rows
        losses: list[Any] = []
        with torch.no_grad(), exact_products(rows.device.type):
            problem = parameters.problem(lambda: _known(closure, parameters.tensors, losses))
            try:
                state = self._steps(problem, rows)
            except BaseException:
                parameters.put(rows)
                raise
            parameters.put(state.x)
            self._keep(None if state.stuck else state.memory.get("pairs"), state.x)
        return losses[0]

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the repr of each group's manifold; the pairs are in the state of the first parameter."""
        saved = super().state_dict()
        return {**saved, "param_groups": [named(group) for group in saved["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; the manifolds stay those of this optimizer. Raises ValueError where their reprs differ, and for
        state that is no pairs."""
        mine = [group["manifold"] for group in self.param_groups]
        check_kind(type(self).__name__, state_dict["param_groups"], self.param_groups)
        if any(set(entry) != PAIRS for entry in state_dict["state"].values()):
            raise ValueError(
                f"the saved state is of another optimizer than {type(self).__name__}, which keeps "
                f"{', '.join(sorted(PAIRS))}. Make the optimizer that it was saved by, or start without it."
            )
        super().load_state_dict(state_dict)
        for group, manifold in zip(self.param_groups, mine, strict=True):
            group["manifold"] = manifold
        self._left = self._parameters().rows

    # How ---------------------------------------------------------------------------------------------------

    def _steps(self, problem: Problem, rows: Tensor) -> State:
        state = start(problem, rows)
        if not torch.isfinite(torch.tensor([state.value, state.norm])).all():
            raise ValueError("the loss or its gradient is NaN or infinite. Nothing was changed; look for the cause.")
        state.memory = self._recall(problem, rows)
        for _ in range(self._max_iter):
            if state.norm <= self._tolerance or state.stuck:
                break
            state = self._solver.advance(problem, state, True)
        return state

    def _parameters(self) -> Parameters:
        named, manifolds = {}, {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self._check_dtype(p)
                    name = name_in(self.param_groups, p)
                    named[name], manifolds[name] = p, group["manifold"] or Euclidean()
        return Parameters(named, manifolds)

    def _check_dtype(self, p: Tensor) -> None:
        if p.dtype not in DTYPES:
            raise TypeError(
                f"{name_in(self.param_groups, p)} has dtype {p.dtype}; RiemannianLBFGS works in float32 or float64, "
                f"real or complex. Convert the model, as by .float()."
            )

    def _first(self) -> Tensor:
        first: Tensor = self.param_groups[0]["params"][0]
        return first

    def _recall(self, problem: Problem, rows: Tensor) -> dict[str, Any]:
        saved = self.state.get(self._first(), {})
        if not saved or self._left is None or not torch.equal(self._left, rows):
            return {}
        steps, changes = saved["steps"].to(rows), saved["changes"].to(rows)
        pairs = no_pairs(problem.space, self._solver.memory, float(saved["scale"]), rows)
        for s, y, weight in zip(steps, changes, saved["weights"].tolist(), strict=True):
            pairs.restore(problem.space, s, y, weight)
        pairs.scale = float(saved["scale"])
        return {"pairs": pairs}

    def _keep(self, pairs: Pairs | None, rows: Tensor) -> None:
        self._left = rows
        if pairs is None:
            self.state.pop(self._first(), None)
            return
        steps, changes = pairs.stacked()
        self.state[self._first()] = {
            "steps": steps,
            "changes": changes,
            "weights": torch.tensor(pairs.weights, dtype=torch.float64),
            "scale": torch.tensor(pairs.scale, dtype=torch.float64),
        }


class _Known(torch.autograd.Function):
    """A value whose derivatives are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, None, *[g * slope for slope in ctx.slopes]


def _known(closure: Callable[[], Any], tensors: list[Tensor], losses: list[Any]) -> Tensor:
    """The loss, as a function of the tensors whose gradients the closure has computed."""
    loss = closure()
    losses.append(loss)
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in tensors]
    value = torch.as_tensor(loss).detach().reshape(()).to(tensors[0].dtype.to_real())
    known: Tensor = _Known.apply(value, slopes, *tensors)  # type: ignore[no-untyped-call]
    return known
