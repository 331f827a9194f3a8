"""What RiemannianSGD and RiemannianAdam share: parameters and their checks, the order of a step, state dicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manifolds.kernels.precision import exact_products

from ...riemannian import param_groups
from ...sharding import is_sharded
from ...watch import look
from .before import check_before, check_free
from .bucket import Bucket
from .checks import Group, check_group, name_in, warn_of_decay
from .compiled import outside_of_graphs
from .hooked import hooked
from .loading import check_fits, check_loaded, name_of_value, named
from .options import decays_in, moves, switches
from .parts import tensors_only
from .plan import Plan
from .shards import Shards
from .tables import Rows, tables_of
from .work import Options, Work, sort

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Group]


class RiemannianOptimizer(Optimizer, ABC):
    """An optimizer whose groups may carry a "manifold", on which it keeps their parameters.

    params: a module, of which `param_groups` makes groups; or what a torch optimizer takes: tensors, (name, tensor)
    pairs, or groups. Raises ValueError for a constrained tensor that comes without its manifold, for a value off its
    manifold, and for options out of range; TypeError for a "manifold" that is none.

    Constrained parameters: all factors of one manifold, shape, dtype, device and options move in one batched update,
    whatever number of parameters they come from. Before anything is changed, the gradients are looked at: on CPU NaN,
    Inf or a norm whose square overflows is a ValueError that names the parameter; on an accelerator, where looking
    would stall, the factor is left as it was and counted in `skipped`. Parameters in bfloat16 or float16 are moved in
    float32, in their state "master"; the weight is the rounded master.

    No drift: a retraction that renormalizes, such as polar for tall matrices, leaves a rounding error of one step. One
    that does not, such as Cayley, leaves some in X^H X at every step: `Bucket.advance` adds up bounds of these errors,
    the "drift" of the state, and before their sum is `DRIFT` eps calls `Engine.polish`, for orthonormal matrices
    X (3I - X^H X)/2, which takes an error e to 3/4 e^2, far below eps. So after any number of steps the error is that
    of the last few, and it needs no singular value decomposition.
    """

    keeps_manifolds: ClassVar[bool] = True
    """A step moves each group on its "manifold". `Riemannian` refuses a step of any optimizer that does not say so."""
    _numbers: ClassVar[frozenset[str]] = frozenset()
    """Keys of the state that hold one number per point; the others hold a tensor like the point."""
    _values: ClassVar[tuple[str, ...]] = ()
    """Options that are functions: saved by name, and not loaded."""
    _mixed: ClassVar[bool] = False
    """Whether factors of different kinds have state of different keys."""
    _decay: ClassVar[float] = 0.0
    """The weight decay of who was asked for none; nothing is said of it where it does nothing."""
    _takes_sparse: ClassVar[bool] = False
    """Whether `_step_free` takes sparse gradients."""
    _takes_rows: ClassVar[bool] = False
    """Whether of a table with a sparse gradient the rows that it touches are moved."""
    _takes_slices: ClassVar[bool] = False
    """Whether `_move` asks only the engine of points and gradients, so that tall matrices may be cut by rows."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._plan: Plan | None = None
        self._shards: Shards | None = None  # None where nothing on a manifold is sharded
        self._skipped: dict[torch.device, Tensor] = {}
        self._warned = False
        groups = param_groups(params) if isinstance(params, nn.Module) else params
        super().__init__(groups, {**defaults, "manifold": None})

    @abstractmethod
    def _check_options(self, group: Group) -> None:
        """ValueError for options out of range."""

    @abstractmethod
    def _step_free(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """The step of torch.optim on unconstrained parameters."""

    @abstractmethod
    def _move(self, bucket: Bucket, group: Group) -> Tensor:
        """Where the points of the bucket go; changes the bucket's state."""

    @staticmethod
    def profile_hook_step(func: Any) -> Any:
        """See `hooked`."""
        return hooked(func)

    # A step ----------------------------------------------------------------------------------------------

    @outside_of_graphs
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, once; the loss of closure, which is called with gradients enabled.

        Raises ValueError for a sparse gradient whose rows are no points and, looked at on CPU only, for a gradient
        that is not finite or overflows when squared and for a value that was changed to one off its manifold: nothing
        is changed. Also for a step too long to be computed: no parameter moves, but moments may hold the gradient.
        Of sharded parameters all processes raise what one of them does, on CPU.
        Within torch.compile it runs as it is: what a step does depends on values, at each of which a graph would end.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(False):  # fewer calls than no_grad
            if self._shards is not None:
                self._shards.check_alike(self.param_groups)
            work = sort(self.param_groups, self._takes_sparse, self._shards is not None)
            check_free(self.param_groups, work.free, self.state)
            plans, finish = self._plans(work)
            with exact_products(*{device for plan in plans for device in plan.devices}):
                for plan in plans:
                    plan.read_points()
                if self._shards is None:
                    for plan in plans:
                        check_before(self.param_groups, plan)
                    reached = [self._reach_all(plan) for plan in plans]
                else:
                    self._shards.agree()
                    self._shards.together(partial(check_before, self.param_groups), plans)
                    reached = self._shards.together(self._reach_all, plans)
                for _, group, params in work.free:
                    self._step_free(group, params, [p.grad for p in params if p.grad is not None])
                for plan, points in zip(plans, reached, strict=True):
                    plan.write_points(points)
                    self._count_skipped(plan)
            for each in finish:
                each(self.state)
        return loss

    def _reach_all(self, plan: Plan) -> list[Tensor]:
        """Also after an error, so that processes which share some of the points go on with equal state."""
        found = [self._reach(bucket, plan) for bucket in plan.buckets]
        for each in found:
            if isinstance(each, ValueError):
                raise each
        return found  # type: ignore[return-value]

    def _reach(self, bucket: Bucket, plan: Plan) -> Tensor | ValueError:
        """`_move`, or an error, as where the step is too long to be computed; no parameter has moved then."""
        group = self.param_groups[bucket.kind.group]
        bucket.moves = moves(group, bucket.device)
        if group.get("lazy"):
            bucket.keep_unseen()
        try:
            return self._move(bucket, group)
        except ValueError as error:
            return error
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass
        member = plan.members[bucket.leaves[0].member]
        return ValueError(
            f"the step of {name_in(self.param_groups, member.named)}, shape {tuple(member.named.shape)}, is so "
            f"long that {member.manifold} has no point there in {bucket.dtype}. No parameter was moved, but "
            f"moments may hold this gradient; lower lr, or clip the gradient."
        )

    @property
    def skipped(self) -> int:
        """How often a factor was left as it was, on accelerators, for a gradient unfit to be taken. Waits for them. Of
        sharded parameters each process counts those that it steps."""
        return sum(int(count) for count in self._skipped.values())

    def _plans(self, work: Work) -> tuple[list[Plan], list[Callable[[Any], None]]]:
        """The plans of a step, with gradients gathered: for whole parameters, for shards, for rows of tables; and what
        is to be called with the state when they have moved."""
        options = Options(self.defaults, work.held)
        params = [p for part in work.held for p in part.params]
        plan = self._plan
        if plan is None or not plan.fits(params, options.key, self.state):
            members = list(options.members(work.held))
            check_fits(self.param_groups, members, self.state, self._numbers, self._mixed)
            plan = self._plan = Plan(members, options.key, self.state, self._numbers)
        plan.read_gradients([p.grad for p in params if p.grad is not None])
        plans: list[Plan] = [plan]
        finish: list[Callable[[Any], None]] = []
        if self._shards is not None:
            members, kinds = list(options.members(work.sharded)), tuple(map(switches, self.param_groups))
            plans += self._shards.plans(members, options.key, kinds, self.state)
            finish.append(self._shards.finish)
        if work.sparse:
            tables = [each for part in work.sparse for each in tables_of(self.param_groups, part, self._takes_rows)]
            check_fits(self.param_groups, tables, self.state, self._numbers, self._mixed)
            rows = Rows(tables, self.state, self._numbers)
            plans.append(rows.plan)
            finish.append(rows.write)
        return plans, [*finish, plan.publish]  # which notes what the state is then

    def _descent(self, bucket: Bucket, group: Group) -> Tensor:
        """The Euclidean gradient of what is to be minimized, with the L2 decay where it does anything and is not
        decoupled; asked for once, for the bucket keeps it no longer."""
        g = bucket.release_gradients()
        g = -g if group.get("maximize", False) else g
        decays = not group.get("decoupled_weight_decay", False) and decays_in(bucket, group)
        return g + group["weight_decay"] * bucket.x if decays else g

    def _count_skipped(self, plan: Plan) -> None:
        for bucket in plan.buckets:
            if bucket.ok is not None and not bucket.looks:
                count = self._skipped.get(bucket.device)
                if count is None:
                    count = self._skipped[bucket.device] = torch.zeros((), dtype=torch.long, device=bucket.device)
                count += (~bucket.ok if bucket.seen is None else ~bucket.ok & bucket.seen).sum()

    # Parameters ------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; checked as those given at the start, and not added if there is anything wrong with them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_options(group)
            check_group(type(self).__name__, group, self.param_groups, takes_shards=True)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._include_shards(group)
        look(self)  # what is held now and is not at a later step is an error then
        if not self._warned:
            self._warned = warn_of_decay(group, self._decay)

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the repr of each group's manifold in its place, and the names of functions.

        The state of a constrained parameter holds "step" and "drift", one number each; tensors of the shape of the
        parameter, where its memory is one stack of factors, or else of its stacks of equal factors; and tensors with
        one number per factor. If the parameter has factors of several kinds, each has tensors of its own, under keys
        as "exp_avg:0" and "exp_avg:1".
        """
        saved = super().state_dict()
        saved["param_groups"] = [
            {**named(group), **{name: name_of_value(group[name]) for name in self._values}}
            for group in saved["param_groups"]
        ]
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; the manifolds stay those of this optimizer.

        Raises ValueError, and changes nothing, where the saved manifold of a group has another repr, an option that is
        a function another name, or where a saved tensor does not fit the factors of its parameter.
        """
        present = list(self.param_groups)
        saved: dict[str, Any] = {}

        def check(_: Optimizer, loaded: dict[str, Any]) -> None:
            loaded["state"] = {key: tensors_only(entry) for key, entry in loaded["state"].items()}
            saved.update(loaded)
            check_loaded(type(self).__name__, loaded, self.param_groups, self._numbers, self._values, self._mixed)

        def restore(_: Optimizer) -> None:
            for group, old, kept in zip(self.param_groups, present, saved["param_groups"], strict=True):
                group["manifold"] = manifold = old["manifold"]
                group.update({name: old[name] for name in self._values})
                for name, option in old.items():
                    group.setdefault(name, option)
                # torch casts state to the dtype of the parameter, which would round a master
                for key, p in zip(kept["params"], group["params"], strict=True):
                    if manifold is not None and key in saved["state"]:
                        self.state[p] = {k: _own(v, p.device) for k, v in saved["state"][key].items()}

        hooks = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_skipped": self._skipped, "_warned": self._warned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = self._shards = None
        for group in self.param_groups:
            self._include_shards(group)

    def _include_shards(self, group: Group) -> None:
        sharded = [p for p in group["params"] if is_sharded(p)] if group.get("manifold") is not None else []
        if sharded:
            self._shards = self._shards or Shards(self._takes_slices, self._numbers)
            self._shards.include(sharded)


def _own(value: Any, device: torch.device) -> Any:
    """A copy of saved state, on the device."""
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value
