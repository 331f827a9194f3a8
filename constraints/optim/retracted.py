"""Any optimizer of torch's kind, on manifolds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from manifolds.kernels.precision import exact_products

from ..watch import guided, look
from .step import Bucket, Group
from .step.before import check_before, refuse_gradient
from .step.checks import name_in
from .step.compiled import outside_of_graphs
from .step.following import back, carry, check_moments, entries, second_points
from .step.frames import ENTRYWISE, Frames, Gradient, Move
from .step.limits import is_fit
from .step.options import moves
from .step.plan import Member, Plan
from .step.proxy import Proxy, check_wrapped, fused, lent
from .step.wrapped import check_held, check_precision


class Retracted(Proxy):
    """x <- R_x(P_x(x' - x)), where the optimizer would move x to x', given the Riemannian gradient in place of .grad.

    P is the projection on the tangent space, R the retraction. Free tensors move as the optimizer moves them, bit for
    bit. torch.optim.SGD becomes `RiemannianSGD`, momentum included. AdamW, NAdam or Lion divide or take signs entry by
    entry, which leaves the tangent space; what P leaves of the step is a bit shorter. `RiemannianAdam` divides a point
    by one number.

    Of the optimizers of torch.optim that move each entry by what its gradients were, SGD, Adam, AdamW and their kin,
    the entries are those of coordinates: of the tangent vector, and on square orthonormal blocks, where it is X Omega,
    of the skew Omega. There nothing is lost by P, momentum needs no transport, and a rotation Q X of all points is one
    of all steps. They see 0 in place of a weight whose points all have one norm, so that decay, of either kind, does
    nothing there. Where the metric is not that of the ambient space they are coordinates in an orthonormal basis of
    T_x (`manifolds.engine.Isometric`): a step of lr in each has the metric length lr sqrt(d), as one of RiemannianAdam,
    at any scale, near an edge too, and decay, which sees P_x(x), pulls as it does elsewhere. All other optimizers see
    the weight and its tangent vectors as they are.

    State: what is called "exp_avg" or "momentum_buffer" is made tangent and transported to the new point, but in an
    orthonormal basis, where it stays with the second moments of its entries, save that of SGD; "z" or "ax", a second
    point, is projected and retracted as x is; everything else, second moments among it, stays as it is, entry by entry.
    `.grad` is what it was after a step. A closure is called once, before the step. Adam and AdamW move held
    tensors on CPU as with fused=True, unless `foreach` or `fused` is given: torch's update in one pass.

    optimizer: one of param_groups(model), or with a "manifold" in groups of your own. Its groups and state are those of
        this one, so that schedulers and GradScaler work; step this one, not that.
    gradient: (manifold, x, g) -> the tensor that the optimizer is given; the Riemannian gradient by default.
    move: (manifold, x, x' - x, lr) -> the point that is reached; as in the formula by default. Points are on leading
        axes; manifold is a factor where the weight is packed.
    carry: whether state follows the point; without it state is the optimizer's own. Without it, but in an orthonormal
        basis, and with a gradient or move of your own, every optimizer sees the weight as it is.

    Raises TypeError for what is no optimizer, ValueError for those that move by values of the loss (LBFGS), for half
    precision, for those that see a weight as it is where the metric is not that of its entries, SGD and ASGD but, and
    as `RiemannianOptimizer` does. A gradient that is not finite is an error on CPU, before anything changes; on an
    accelerator the factor is left where it was, counted in `skipped`.
    Source: Li et al., StelLA (2025), arXiv 2510.01938, algorithm 1, which is gradient, step, projection, retraction.

    >>> layer = constrain(torch.nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    >>> optimizer = Retracted(torch.optim.NAdam(param_groups(layer), lr=1e-2))
    >>> layer(torch.randn(3, 4)).sum().backward()
    >>> optimizer.step()
    >>> report(layer)[0].ok
    True
    """

    keeps_manifolds: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        gradient: Gradient | None = None,
        move: Move | None = None,
        carry: bool = True,
    ) -> None:
        check_wrapped(optimizer)
        super().__init__(optimizer)
        self._gradient, self._move, self._carry = gradient, move, carry
        self._frame = Frames(optimizer, gradient, move, carry)
        self._plan: Plan | None = None
        self._held: Any = {}  # what is kept of rounding, by parameter
        self._skipped: dict[torch.device, Tensor] = {}
        self._trained: dict[Tensor, Tensor] = {}  # the points, while others are in their place
        for group in self.param_groups:
            check_held(self.inner, group, self._frame)
        look(self)

    # Parameters ------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; checked as those given at the start, and not added if there is anything wrong with them."""
        self.inner.add_param_group(param_group)
        try:
            check_held(self.inner, self.param_groups[-1], self._frame)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        look(self)

    # A step ----------------------------------------------------------------------------------------------

    @outside_of_graphs
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, once; the loss of closure, which is called once.

        Raises ValueError as `RiemannianOptimizer.step` does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            plan, frame = self._plan_step(), self._frame
            members = [member.parameter for member in plan.members]
            with exact_products(*plan.devices):
                plan.read_points()
                check_before(self.param_groups, plan)
                given = plan.spread([frame(bucket).given(bucket) for bucket in plan.buckets])
                starts = [frame(bucket).start(bucket) for bucket in plan.buckets]
            seconds: dict[str, list[Tensor]] = {}
            if self._carry and type(self.inner) not in ENTRYWISE:
                seconds = second_points(self.state, plan, [p.detach() for p in members])
            values = plan.spread(starts)
            with lent(members, values, given), guided(self.inner), fused(self.inner):
                self.inner.step()
            with exact_products(*plan.devices):
                self._retract(plan, plan.gather(values, starts), seconds)
            plan.publish(self._held)
        return loss

    @property
    def skipped(self) -> int:
        """How often a factor was left as it was, on accelerators, for a gradient unfit to be taken. Waits for them."""
        return sum(int(count) for count in self._skipped.values())

    def eval(self) -> None:
        """As that of the optimizer, for those that have two sets of weights, as Schedule-Free: points both."""
        self._turn(self.inner.eval)  # type: ignore[attr-defined]

    def train(self) -> None:
        """As that of the optimizer: back to the weights that are trained."""
        known = dict(self._trained)
        self._turn(self.inner.train, known)  # type: ignore[attr-defined]
        self._trained.clear()

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer, with the repr of each group's manifold, and as "retracted" in what numbers it sees it;
        under "retracted" of all what is kept of rounding."""
        saved = super().state_dict()
        for group, mine in zip(saved["param_groups"], self.param_groups, strict=True):
            if group["manifold"] is not None:
                group["retracted"] = self._frame.sees(mine)
        keys = [key for group in saved["param_groups"] for key in group["params"]]
        kept = {key: self._held.get(p) for key, p in zip(keys, self._parameters(), strict=True)}
        saved["retracted"] = {key: dict(entry) for key, entry in kept.items() if entry is not None}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As that of the optimizer; manifolds stay those of this one. Raises ValueError where their reprs differ, and
        for the state of an optimizer of another kind, or of one that is not Retracted, or was in another way."""
        groups = state_dict["param_groups"]
        for i, (group, mine) in enumerate(zip(groups, self.param_groups, strict=False)):
            sees = None if mine["manifold"] is None else self._frame.sees(mine)
            what = group.get("retracted")
            if group.get("manifold") is not None and sees is not None and what != sees:
                raise ValueError(
                    f"group {i} of the saved state is "
                    f"{'not of Retracted' if what is None else f'of an optimizer that saw {what}'}, and here "
                    f"{type(self.inner).__name__} sees {sees}. Make the optimizer that it was saved by, "
                    f"with the same gradient, move and carry, or start without it."
                )
        plain = [{key: value for key, value in group.items() if key != "retracted"} for group in groups]
        super().load_state_dict({"state": state_dict["state"], "param_groups": plain})
        keys = [key for group in groups for key in group["params"]]
        kept = state_dict.get("retracted", {})
        self._held = {p: _copied(kept[key]) for key, p in zip(keys, self._parameters(), strict=True) if key in kept}
        self._plan = None

    def __getstate__(self) -> dict[str, Any]:
        own = {name: vars(self)[name] for name in ("_gradient", "_move", "_carry", "_trained", "_skipped")}
        return {**super().__getstate__(), **own, "_held": {p: dict(entry) for p, entry in self._held.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._frame = Frames(self.inner, self._gradient, self._move, self._carry)
        self._plan = None

    # How -------------------------------------------------------------------------------------------------

    def _plan_step(self) -> Plan:
        """The plan for the held parameters that have a gradient, with theirs gathered."""
        groups = [(i, group) for i, group in enumerate(self.param_groups) if group["manifold"] is not None]
        given = [[p for p in group["params"] if p.grad is not None] for _, group in groups]
        params = [p for each in given for p in each]
        for p in params:
            if p.grad is not None and p.grad.is_sparse:
                way = "Make its layer with sparse=False, or take RiemannianAdam, which moves the rows it touches"
                refuse_gradient(self.param_groups, p, "a sparse layout", way)
        options = tuple((i, group["manifold"], len(each)) for (i, group), each in zip(groups, given, strict=True))
        if self._plan is None or not self._plan.fits(params, options, self._held):
            for p in params:
                check_precision(self.param_groups, p, type(self.inner).__name__)
                if type(self.inner) in ENTRYWISE:
                    check_moments(self.param_groups, p, self.state.get(p, {}))
            members = [
                Member(p, group["manifold"], i, False)
                for (i, group), each in zip(groups, given, strict=True)
                for p in each
            ]
            self._plan = Plan(members, options, self._held, frozenset())
        self._plan.read_gradients([p.grad for p in params])
        return self._plan

    def _retract(self, plan: Plan, ends: list[Tensor], seconds: dict[str, list[Tensor]]) -> None:
        """Move the points along what the optimizer did to them, and its state with them."""
        reached = []
        for bucket, end in zip(plan.buckets, ends, strict=True):
            group, d = self.param_groups[bucket.kind.group], self._frame(bucket).displacement(bucket, end)
            if not bucket.looks:
                fit = is_fit(d.reshape(bucket.shape))
                bucket.ok = fit if bucket.ok is None else bucket.ok & fit
                d = torch.where(bucket.per_point(fit), d, 0)
            bucket.moves = moves(group, bucket.device)
            reached.append(self._reach(plan, bucket, d, group))
        if self._carry:
            means = frozenset({"exp_avg", "momentum_buffer"} if type(self.inner) is SGD else {"exp_avg"})
            carry(self.state, plan, means, self._frame, reached)
        for key, olds in seconds.items():
            for (z, member), old in zip(entries(self.state, plan, key), olds, strict=True):
                if z is not None:
                    z.copy_(back(member.manifold, old, z))
        plan.write_points(reached)
        for bucket in plan.buckets:
            if bucket.ok is not None:
                self._skipped[bucket.device] = self._skipped.get(bucket.device, 0) + (~bucket.ok).sum()

    def _reach(self, plan: Plan, bucket: Bucket, d: Tensor, group: Group) -> Tensor:
        """The points that the displacement reaches. Raises ValueError where there is none; no point has moved then."""
        try:
            return self._frame(bucket).reach(bucket, d, group.get("lr"))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass
        p = plan.members[bucket.leaves[0].member].parameter
        raise ValueError(
            f"the step of {name_in(self.param_groups, p)}, shape {tuple(p.shape)}, is so long, or not finite, that "
            f"{bucket.factor} has no point there in {bucket.dtype}. No constrained parameter was moved, but the state "
            f"of {type(self.inner).__name__} holds this gradient; lower lr, or clip the gradient."
        )

    @torch.no_grad()
    def _turn(self, turn: Callable[[], Any], trained: dict[Tensor, Tensor] | None = None) -> None:
        """Let the optimizer exchange the weights for others, and bring those to their manifolds, if not known."""
        held = [(p, group["manifold"]) for group in self.param_groups if group["manifold"] for p in group["params"]]
        before = [p.detach().clone() for p, _ in held]
        turn()
        for (p, manifold), old in zip(held, before, strict=True):
            known = None if trained is None else trained.get(p)
            if trained is None and p not in self._trained:
                self._trained[p] = old
            if known is None and torch.equal(p, old):
                continue
            p.copy_(back(manifold, old, p.detach()) if known is None else known)


def _copied(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in entry.items()}
