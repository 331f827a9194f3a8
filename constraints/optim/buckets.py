"""Equal factors of many parameters as one batch.

A `Bucket` holds points and gradients of shape (B, *point), and the optimizer's state in the same rows; a `Plan` says
which factors of which parameters make which bucket. Neither knows how a step is made.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from manifolds import Manifold

State = MutableMapping[Tensor, dict[str, Any]]
Points = Inexact[Tensor, "B *point"]
Numbers = Float[Tensor, " B"]


DRIFT = 24.0
"""How far rounding may take X^H X, in eps, before the points are polished."""


class Member(NamedTuple):
    """A parameter that has a gradient, as a plan needs it."""

    parameter: Tensor
    manifold: Manifold
    group: int  # the first parameter group with the options of its own
    capturable: bool


class Kind(NamedTuple):
    """What the factors of one bucket have in common."""

    factor: Manifold
    point: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    group: int
    capturable: bool
    steps: float | None  # None where they are not counted
    keys: frozenset[str]  # of the state that is there already


@dataclass(frozen=True)
class Leaf:
    """One stack of equal factors of one parameter, and its rows in a bucket."""

    member: int  # its number in the plan
    part: int  # its number in manifold.split(parameter)
    source: int  # its number in plan.cut(parameters)
    shape: tuple[int, ...]  # of plan.cut(parameters)[source]
    batch: tuple[int, ...]  # of one number per point
    start: int
    stop: int


class Rows:
    """One tensor of (B, *point), and its views in the shapes of the leaves, into and out of which they are copied."""

    def __init__(self, rows: Tensor, leaves: Sequence[Leaf]) -> None:
        self.rows = rows
        self._slots = [rows[leaf.start : leaf.stop].view(leaf.shape) for leaf in leaves]
        # one kernel for all, where they can be stacked
        self._stack = rows.view(len(leaves), *leaves[0].shape) if len({leaf.shape for leaf in leaves}) == 1 else None

    @staticmethod
    def new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, leaves: Sequence[Leaf]) -> Rows:
        """Rows with memory of their own."""
        return Rows(torch.empty(shape, dtype=dtype, device=device), leaves)

    def gather(self, sources: list[Tensor]) -> Tensor:
        """The rows, with a copy of every leaf in them."""
        if self._stack is not None:
            torch.stack(sources, out=self._stack)
        else:
            torch._foreach_copy_(self._slots, sources)
        return self.rows

    def scatter(self, targets: list[Tensor]) -> None:
        """Copy the rows of every leaf out."""
        torch._foreach_copy_(targets, self._slots)


class Bucket:
    """All factors of one kind: one batched update.

    x: the points, (B, *point). The memory of the parameter itself where one parameter makes the bucket; the float32
        master, kept as state "master", where the parameters are bfloat16 or float16.
    g: their gradients, of the shape and dtype of x. May be memory of the gradient itself: not to be written to.
    ok: None on CPU, where a gradient that is not finite is an error; elsewhere which points have a finite one, (B,).
    state: one tensor a key, (B, *point), or (B,) where the optimizer keeps one number per point.
    """

    x: Points
    g: Points

    def __init__(self, kind: Kind, leaves: list[Leaf], home: Tensor | None) -> None:
        """home: the memory of the parameter, where it is all of the bucket."""
        self.kind, self.factor, self.leaves = kind, kind.factor, leaves
        self.shape = (leaves[-1].stop, *kind.point)
        self.dtype, self.device = compute_dtype(kind.dtype), kind.device
        self.ok: Bool[Tensor, " B"] | None = None
        self.steps: Float[Tensor, ""] | None = None if kind.steps is None else self._counter(kind.steps)
        self.state: dict[str, Tensor] = {}
        self._drift = math.inf  # of x since it was last polished, in eps; unknown at first
        self._sources = [leaf.source for leaf in leaves]
        # the values of the parameters, in their own dtype
        self._held = Rows(home, leaves) if home is not None else Rows.new(self.shape, kind.dtype, self.device, leaves)
        self._direct = home is not None
        self._gathered = Rows.new(self.shape, self.dtype, self.device, leaves) if len(leaves) > 1 else None

    # From and to the parameters --------------------------------------------------------------------------

    def read_gradients(self, cut: Sequence[Tensor]) -> None:
        """Gather g. On an accelerator, note which points have a finite one and put zero for the others."""
        if self._gathered is None:
            self.g = cut[self._sources[0]].reshape(self.shape).to(self.dtype)
        else:
            self.g = self._gathered.gather([cut[i] for i in self._sources])
        if self.device.type != "cpu":
            self.ok = torch.isfinite(self.g).reshape(self.shape[0], -1).all(1)
            self.g = torch.where(self._per_point(self.ok), self.g, 0)

    def read_points(self, cut: Sequence[Tensor]) -> None:
        """Gather x. A master follows what was done to its weight since the last step: x + (weight - rounded x)."""
        held = self._held.rows if self._direct else self._held.gather([cut[i] for i in self._sources])
        if held.dtype == self.dtype:
            self.x = held
        elif "master" in self.state:
            self.x = self.state["master"]
            self.x += held.to(self.dtype) - self.x.to(held.dtype).to(self.dtype)
        else:
            self.x = self.state["master"] = self.factor.nearest(held.to(self.dtype))

    def write_points(self, y: Points, cut: Sequence[Tensor]) -> None:
        """Put y in the place of x, in the parameters too; points whose gradient is not finite stay where they are."""
        self.x.copy_(self._keep(y, self.x))
        if self._held.rows is not self.x:
            self._held.rows.copy_(self.x)
        if not self._direct:
            self._held.scatter([cut[i] for i in self._sources])
        del self.g, self.x

    def not_finite(self) -> Leaf | None:
        """A leaf with NaN or Inf in its gradient, on CPU."""
        # the sum of finite numbers may overflow, so it can only acquit
        if self.ok is not None or bool(torch.isfinite(self.g.sum())):
            return None
        bad = (leaf for leaf in self.leaves if not bool(torch.isfinite(self.g[leaf.start : leaf.stop]).all()))
        return next(bad, None)

    # What an optimizer calls -----------------------------------------------------------------------------

    def count_step(self) -> float | Tensor:
        """The number of this step, from 1 on; a tensor on the device if capturable."""
        if self.steps is None:
            self.steps = self._counter(0)
        self.steps += 1
        return self.steps if self.kind.capturable else self.steps.item()

    def move(self, c: Points) -> Points:
        """The points reached from x along the tangent vectors with coordinates c, polished when rounding asks for it.

        A step of length l leaves an error of about (4 + 2 l) eps in X^H X; it is kept below `DRIFT` eps.
        """
        y = self.factor.move(self.x, c)
        if type(self.factor).polish is Manifold.polish:
            return y
        # an accelerator would have to be waited for
        length = (
            float(torch.linalg.vector_norm(c.reshape(self.shape[0], -1), dim=1).max())
            if self.device.type == "cpu"
            else math.inf
        )
        self._drift += 4 + 2 * length
        if self._drift <= DRIFT:
            return y
        self._drift = 0
        return self.factor.polish(y)

    def points(self, key: str) -> Points:
        """State of the shape of x, zero at first: to be changed in place, then handed to `put`."""
        return self._working(key, self.shape, self.dtype)

    def numbers(self, key: str) -> Numbers:
        """State with one number per point, zero at first: to be changed in place, then handed to `put`."""
        return self._working(key, self.shape[:1], real_dtype(self.dtype))

    def put(self, key: str, value: Tensor) -> None:
        """Make value, which is nobody else's, the state, except of points whose gradient is not finite."""
        if key not in self.state:
            self.state[key] = value.contiguous()
        elif value is not self.state[key]:
            self.state[key].copy_(self._keep(value, self.state[key]))

    def times(self, numbers: Numbers, points: Points) -> Points:
        """Each point times its number."""
        return points * self._per_point(numbers)

    # State, parameter by parameter -----------------------------------------------------------------------

    def load(self, parts: Sequence[dict[str, Tensor]], numbers: frozenset[str]) -> None:
        """Take the state from one dict a leaf; numbers are the keys that have one number per point."""
        for key in self.kind.keys:
            shape, dtype = (self.shape[:1], real_dtype(self.dtype)) if key in numbers else (self.shape, self.dtype)
            self.state[key] = torch.cat([p[key].to(self.device, dtype).reshape(-1, *shape[1:]) for p in parts])

    def leaf_state(self, key: str, leaf: Leaf) -> Tensor:
        """The rows of one leaf: a view, in the shape of the leaf or with one number per point of it."""
        tensor = self.state[key]
        return tensor[leaf.start : leaf.stop].view(leaf.shape if tensor.shape == self.shape else leaf.batch)

    def _working(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if key not in self.state:
            self.state[key] = torch.zeros(shape, dtype=dtype, device=self.device)
        return self.state[key] if self.ok is None else self.state[key].clone()

    def _keep(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.ok is None else torch.where(self._per_point(self.ok, new.dim()), new, old)

    def _per_point(self, numbers: Tensor, dim: int | None = None) -> Tensor:
        return numbers.view(-1, *(1,) * ((dim or len(self.shape)) - 1))

    def _counter(self, steps: float) -> Float[Tensor, ""]:
        return torch.full((), steps, dtype=torch.float32, device=self.device if self.kind.capturable else "cpu")


class Plan:
    """Which factors of which parameters make which bucket, for parameters that have a gradient.

    It is made once and used until `fits` says otherwise: when other parameters have a gradient, when the memory of a
    parameter or the grouping of options has changed, or when the optimizer's state is not the one it published.
    """

    def __init__(self, members: Sequence[Member], options: Hashable, state: State, numbers: frozenset[str]) -> None:
        """options: changes with the grouping of options; numbers: the keys of state with one number per point."""
        self.members, self._options = members, options
        self._homes = [m.parameter.detach() for m in members]
        self._pointers = [home.data_ptr() for home in self._homes]
        splits = [m.manifold.split(home) for m, home in zip(members, self._homes, strict=True)]
        # a parameter whose memory is one stack of points, in their order, is read and written whole
        whole = [len(s) == 1 and _same_memory(home, s[0][1]) for home, s in zip(self._homes, splits, strict=True)]
        self._packed = [i for i, is_whole in enumerate(whole) if not is_whole]
        self._copied = [i for i in self._packed if not all(_shares(part, self._homes[i]) for _, part in splits[i])]
        self._places = self.cut(self._homes)
        self._entries: list[dict[str, Any]] | None = None
        self._keys = 0
        self._leaves: list[dict[int, tuple[Bucket, Leaf]]] = [{} for _ in members]
        self.buckets = self._fill(splits, state, numbers)

    def fits(self, parameters: Sequence[Tensor], options: Hashable, state: State) -> bool:
        """Whether the plan is still the one for these parameters with gradients, these options and this state."""
        return (
            self._options == options
            and self._entries is not None
            and list(map(id, state.values())) == list(map(id, self._entries))
            and [p.data_ptr() for p in parameters] == self._pointers
            and all(map(Tensor.is_set_to, parameters, self._homes))
        )

    def cut(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, one for each parameter, and after them the stacks of those that are not read whole."""
        parts = [part for i in self._packed for _, part in self.members[i].manifold.split(tensors[i])]
        return [*tensors, *parts]

    def read_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Gather the gradients of every bucket."""
        cut = self.cut(gradients)
        for bucket in self.buckets:
            bucket.read_gradients(cut)

    def read_points(self) -> None:
        """Gather the points of every bucket."""
        if self._copied:
            self._places = self.cut(self._homes)
        for bucket in self.buckets:
            bucket.read_points(self._places)

    def write_points(self, points: Iterable[Points]) -> None:
        """Move every bucket, in their order, and the parameters with them."""
        for bucket, y in zip(self.buckets, points, strict=True):
            bucket.write_points(y, self._places)
        for i in self._copied:
            parts = [self._places[leaf.source] for _, leaf in self._in_order(i)]
            self._homes[i].copy_(self.members[i].manifold.join(parts, self._homes[i].shape))

    def publish(self, state: State) -> None:
        """Make the state of each parameter views of the buckets: a tensor a key, a tuple if it has several stacks."""
        keys = sum(len(bucket.state) for bucket in self.buckets)
        if self._entries is not None and keys == self._keys:
            return
        for i, member in enumerate(self.members):
            leaves = self._in_order(i)
            first, _ = leaves[0]
            entry: dict[str, Any] = {} if first.steps is None else {"step": first.steps}
            for key in first.state:
                views = tuple(bucket.leaf_state(key, leaf) for bucket, leaf in leaves)
                entry[key] = views if len(views) > 1 else views[0]
            state[member.parameter] = entry
        self._keys, self._entries = keys, list(state.values())

    def _in_order(self, member: int) -> list[tuple[Bucket, Leaf]]:
        return [self._leaves[member][part] for part in sorted(self._leaves[member])]

    def _fill(
        self, splits: Sequence[Sequence[tuple[Manifold, Tensor]]], state: State, numbers: frozenset[str]
    ) -> list[Bucket]:
        kinds: dict[Kind, list[Leaf]] = {}
        source = len(self.members)
        for i, (member, split) in enumerate(zip(self.members, splits, strict=True)):
            entry = state.get(member.parameter, {})
            steps, keys = float(entry["step"]) if "step" in entry else None, frozenset(entry) - {"step"}
            for part, (factor, stack) in enumerate(split):
                cut = stack.dim() - factor.ndim
                batch, point = tuple(stack.shape[:cut]), tuple(stack.shape[cut:])
                kind = Kind(factor, point, stack.dtype, stack.device, member.group, member.capturable, steps, keys)
                leaves = kinds.setdefault(kind, [])
                start = leaves[-1].stop if leaves else 0
                at = source if i in self._packed else i
                shape = tuple(self._places[at].shape)
                leaves.append(Leaf(i, part, at, shape, batch, start, start + math.prod(batch)))
                source += i in self._packed
        return [self._bucket(kind, leaves, state, numbers) for kind, leaves in kinds.items()]

    def _bucket(self, kind: Kind, leaves: list[Leaf], state: State, numbers: frozenset[str]) -> Bucket:
        place, only = self._places[leaves[0].source], leaves[0].member
        direct = len(leaves) == 1 and place.is_contiguous() and only not in self._copied
        bucket = Bucket(kind, leaves, place.view(-1, *kind.point) if direct else None)
        entries = [(state.get(self.members[leaf.member].parameter, {}), leaf.part) for leaf in leaves]
        bucket.load([{k: state_parts(entry[k])[part] for k in kind.keys} for entry, part in entries], numbers)
        for leaf in leaves:
            self._leaves[leaf.member][leaf.part] = bucket, leaf
        return bucket


def state_parts(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The state of one parameter under one key, as one tensor for each of its stacks."""
    return [value] if isinstance(value, Tensor) else value


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for bfloat16 and float16, else the dtype itself: the one that points are kept and moved in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the absolute value."""
    return dtype.to_real() if dtype.is_complex else dtype


def _same_memory(whole: Tensor, stack: Tensor) -> bool:
    return whole.is_contiguous() and stack.is_contiguous() and stack.data_ptr() == whole.data_ptr()


def _shares(part: Tensor, whole: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
