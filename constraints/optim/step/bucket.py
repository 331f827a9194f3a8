"""Equal factors of many parameters as one batch, with the optimizer's state in the same rows."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from manifolds import Euclidean, tolerance
from manifolds.engine import engine, settled
from manifolds.kernels.tiny import batch_last

from ...values import is_near, master_dtype
from .counting import count, counter
from .limits import being_captured, can_look, is_fit, length, overwrite, real_dtype, seen_and_fit, too_long, where
from .rows import Held, Kind, Leaf, Rows, Tiles, held, is_batch_last
from .short import short_steps

Points = Inexact[Tensor, "B *point"]
Numbers = Float[Tensor, " B"]

DRIFT = 24.0
"""How far rounding may take X^H X from I, in eps, before the points are polished."""

COUNTS = frozenset({"step", "drift"})
"""The keys of the state that hold one number for all points of a stack; the others hold numbers for each point."""


class Bucket:
    """All factors of one kind: one batched update. Many tiny matrices are kept batch last in memory, see `tiny`.

    x: the points, (B, *point), or (tiles, b, *point) where `rows.held` says so. The memory of the parameter itself
        where one parameter makes the bucket; the float32 master, kept as state "master", where the parameters are
        bfloat16 or float16.
    g: their gradients, of the shape and dtype of x. May be memory of the gradient itself: not to be written to.
    steps, drift: what the state holds as "step" and "drift", each None where it is not kept.
    ok: which points move, (B,), None for all: on accelerators those with a finite gradient, elsewhere it is an error.
    seen: None, or which of them have a gradient that is not zero, where the others stay.
    moves: False where lr is 0, and not a bit of x may change; on an accelerator a tensor of it, if lr is one.
    state: one tensor a key, (B, *point), or (B,) where the optimizer keeps one number per point; what is called with
        it has the batch axes of x.
    """

    x: Points
    g: Points
    share = 1.0  # of the largest norm that a gradient may have, where g is a part of one

    def __init__(self, kind: Kind, leaves: list[Leaf], home: Tensor | None, numbers: frozenset[str]) -> None:
        """home: the memory of the parameter, where it is all of the bucket; numbers: the keys of state with one number
        per point."""
        self.kind, self.factor, self.leaves, self._numbers = kind, kind.factor, leaves, numbers
        self.engine = engine(kind.factor).of_shape(kind.point)
        self.shape = (leaves[-1].stop, *kind.point)
        self.dtype, self.device = master_dtype(kind.dtype), kind.device
        self.ok: Bool[Tensor, " B"] | None = None
        self.seen: Bool[Tensor, " B"] | None = None
        self.moves: bool | Bool[Tensor, ""] = True
        self._stays = False  # whether nothing is to be written in this step; of one that was refused, until the next
        self._start: Tensor | None = None  # the values of which a master was made in this step
        self.steps = None if kind.steps is None else counter(kind.steps, kind.device, kind.capturable)
        self.state: dict[str, Tensor] = {}
        self.drift: Float[Tensor, ""] | None = None  # of x since it was last polished, in eps; None if none is kept
        self._drift = math.inf  # the same, without looking at a tensor; unknown at first
        self._written: complex | None = None  # the sum of x as it was written; None where it is not known
        self._threads = 0  # which took this sum: by others in number it is another one; strides of x do not change
        self._foreign = False  # whether somebody else wrote to x since
        self._ready: dict[str, Tensor] = {}  # the state with the batch axes of x, where it may be changed at once
        self._held = held(kind, leaves, home, self.dtype)  # the values of the parameters, in their own dtype
        self._gradients: Held | None = self._held if isinstance(self._held, Tiles) else None
        if len(leaves) > 1:
            self._gradients = Rows(self.shape, self.dtype, self.device, leaves)
        self.looks = can_look(self.device)  # whether a step may look at values
        self._watched = self.looks and not isinstance(self.factor, Euclidean)
        self._polishes = self.engine.polishes
        self._batch_last = is_batch_last(leaves, self.shape, self.device)
        self._short = None if self.looks else short_steps(self.factor, self.shape, self.dtype, self.device)

    # From and to the parameters --------------------------------------------------------------------------

    def read_gradients(self, cut: Sequence[Tensor]) -> None:
        """Gather g. On an accelerator, note which points have a finite one and put zero for the others."""
        gathered = self._gradients
        g = cut[self.leaves[0].source] if gathered is None else gathered.read(cut)
        if gathered is None:
            g = self._order(g if g.shape == self.shape else g.reshape(self.shape))
        g = g.to(self.dtype)
        self.seen, self.ok = None, None if self.looks else is_fit(g)
        self.g = self._keep(g, 0)

    def keep_unseen(self) -> None:
        """In this step keep points whose gradient is zero. What moves is polished: drift is one number for all."""
        self.seen, self.ok = seen_and_fit(self.g.reshape(self.shape), self.ok)
        self._drift = math.inf
        self._ready.clear()

    def release_gradients(self) -> Points:
        """g, which the bucket keeps no longer: its memory is there for what is computed of it."""
        g = self.g
        del self.g
        return g

    def read_points(self, cut: Sequence[Tensor]) -> None:
        """Gather x. A master follows what was done to its weight since the last step: x + (weight - rounded x)."""
        values, self._stays = self._held.read(cut), False
        if values.dtype == self.dtype:
            self.x = values
        elif "master" in self.state:
            master = self.state["master"]
            self.x = master + (values.to(self.dtype) - master.to(values.dtype).to(self.dtype))
        else:
            self._start = values
            self.x = self.state["master"] = settled(self.factor, values.to(self.dtype))

    def write_points(self, y: Points, cut: Sequence[Tensor]) -> None:
        """Put y in the place of x, in the parameters too; points whose gradient is not finite stay where they are."""
        start, self._start = self._start, None
        if self.ok is not None or isinstance(self.moves, Tensor):
            old = self.x if start is None else start.to(self.dtype)
            y = self._keep(y, old)
            y = torch.where(self.moves, y, old) if isinstance(self.moves, Tensor) else y
            self._written = None
        if not self._stays:
            if "master" in self.state:
                self.state["master"].copy_(y)
            self._held.write(y, cut)
            if self.looks and self._written is None:  # x, as it will be read, has another order than y
                self._written = self.x.copy_(y).sum().item()
        elif start is not None:  # the nearest point may be rounded to another value than that which is there
            self.state["master"].copy_(start)
        del self.x

    def off(self) -> Leaf | None:
        """On CPU, a leaf with a point off its manifold; looked at only where x is not what was written last."""
        if not self._watched:
            return None
        if self.x.sum().item() == self._written:  # but for rare chance, nothing was written
            return None
        if self._written is None:  # the first look, after a state was loaded or before there is any
            self._foreign = not bool((self.factor.residual(self.x) <= tolerance(self.dtype)).all())
        else:
            self._foreign = self._threads == torch.get_num_threads()
        rows = self.x.reshape(self.shape)
        leaves = ((leaf, rows[leaf.start : leaf.stop]) for leaf in self.leaves)
        return next((leaf for leaf, x in leaves if not is_near(self.factor, x, self.kind.dtype)), None)

    # What an optimizer calls -----------------------------------------------------------------------------

    def count_step(self) -> float | Tensor:
        """The number of this step, from 1 on; a tensor on the device if capturable."""
        if self.steps is None:
            self.steps = counter(0, self.device, self.kind.capturable)
        return count(self.steps, self.device, self.kind.capturable)

    def advance(self, c: Points, size: float | Tensor, longest: float | None = None) -> Points:
        """The points reached from x along the tangent vectors with coordinates size c, polished when rounding asks
        for it. size: a number, or a tensor of one element or one per point.

        A step of length l leaves an error of about 4 + max(2, l) l eps in X^H X; `DRIFT` bounds their sum.
        longest: a bound of l. Measured if that is None or far, except on accelerators, where it would stall: they
        polish. So does a step that may be captured there, since its replays decide nothing.
        Raises torch.linalg.LinAlgError, on CPU, where y is not finite or further off than polishing mends.
        """
        if (by := self.sized(size)) is None:
            return self._stay()
        drift = None
        y, fit = self._advanced(c, by)
        if fit is not None:  # and polished
            self.ok, drift = fit if self.ok is None else self.ok & fit, 0.0
        elif self._polishes:
            y, drift = self._polished(y, c, by, longest)
        return self._reached(y, drift)

    def sized(self, size: float | Tensor) -> float | Tensor | None:
        """A number where it may be looked at, else what multiplies points; None where no point moves."""
        if isinstance(size, Tensor) and not (self.looks and size.numel() == 1):
            return None if self.moves is False else self.per_point(size) if size.dim() else size
        if not abs(number := float(size)) <= torch.finfo(self.dtype).max:
            raise too_long()
        return None if self.moves is False or number == 0 else number

    def settle(self, y: Points) -> Points:
        """y, the points reached, where a rule has computed them itself, on the manifold to rounding."""
        renews = not self._polishes or self.engine.renormalizes(self.x)
        return self._stay() if self.moves is False else self._reached(y, None if renews else 0.0)

    def per_point(self, numbers: Tensor) -> Tensor:
        """One number per point, shaped to multiply points."""
        return numbers.view(*numbers.shape, *(1,) * len(self.kind.point))

    def _reached(self, y: Points, drift: float | None) -> Points:
        """y, of which is noted what `off` has to know of it."""
        if self.looks:
            written = y.sum().item()
            if not cmath.isfinite(written):
                raise too_long()
            # x, which y is copied to, is summed in another order if its strides are others
            self._written = written if y.stride() == self.x.stride() else None
            self._threads = torch.get_num_threads()
        self._foreign = False
        if drift is not None:
            self._set_drift(drift)
        return y

    def _stay(self) -> Points:
        """x, of which nothing is written, and nothing is known that was not before."""
        self._stays = True
        if self._polishes and self.drift is None and not self.engine.renormalizes(self.x):
            self._set_drift(math.inf)  # not measured yet; a saved state has its key
        return self.x

    def stored(self, key: str) -> Points | Numbers:
        """State like x, or one number per point; zero at first. To be changed in place, then given to `put`."""
        ready = self._ready.get(key)
        if ready is not None:
            return ready
        if key not in self.state:
            shape, dtype = self._layout(key)
            self.state[key] = self._order(torch.zeros(shape, dtype=dtype, device=self.device))
        rows = self.state[key]
        rows = rows.view(*self.x.shape[: self.x.dim() - len(self.kind.point)], *rows.shape[1:])
        if self.ok is not None:
            return rows.clone()
        return self._ready.setdefault(key, rows)

    def put(self, key: str, value: Tensor) -> None:
        """Make value, which is nobody else's, the state, except of points whose gradient is not finite."""
        kept = self._ready.get(key)
        if value is kept:
            return
        if key not in self.state:
            rows = value.flatten(0, 1) if isinstance(self._held, Tiles) else value
            self.state[key] = self._order(rows.contiguous())
            return
        kept = self.state[key].view(value.shape) if kept is None else kept
        overwrite(kept, value, self.ok)

    # State, parameter by parameter -----------------------------------------------------------------------

    def load(self, parts: Sequence[dict[str, Tensor]]) -> None:
        """Take the state from one dict a leaf."""
        if self._polishes and all("drift" in part for part in parts):
            self._set_drift(max(float(part["drift"]) for part in parts))
        for key in sorted(self.kind.keys):  # one order on all processes, which gather state key by key
            shape, dtype = self._layout(key)
            rows = torch.cat([p[key].to(self.device, dtype).reshape(-1, *shape[1:]) for p in parts])
            self.state[key] = self._order(rows)

    def leaf_state(self, key: str, leaf: Leaf) -> Tensor:
        """The rows of one leaf: a view, in the shape of the leaf or with one number per point of it."""
        tensor = self.state[key]
        return tensor[leaf.start : leaf.stop].view(leaf.shape if tensor.shape == self.shape else leaf.batch)

    def _advanced(self, c: Points, size: float | Tensor) -> tuple[Points, Bool[Tensor, " B"] | None]:
        """Where the points go, and which of them that is right for; None for all."""
        if self._short is None or being_captured(self.device):
            return self.engine.advance(self.x, c, size), None
        return self._short.advance(self.engine, self.x, c, size)

    def _polished(
        self, y: Points, c: Points, size: float | Tensor, longest: float | None
    ) -> tuple[Points, float | None]:
        """(y, polished where rounding asks for it; the drift that is left, None if none is kept)."""
        engine, renews = self.engine, self.engine.renormalizes(self.x)
        # near the manifold, but not to rounding: 4e-3, as of bfloat16, takes two
        if self._foreign or ("master" in self.state and self._drift == math.inf and not self.looks):
            y = engine.polish(engine.polish(y))
        if self.looks and (longest is None or longest > 1):
            longest = length(c, size, len(self.kind.point))
        elif longest is None or (self.kind.capturable and not self.looks and not renews):
            longest = math.inf
        error = 4 + max(2.0, longest) * longest
        total = error if renews or self._foreign else self._drift + error
        if not 0 <= total <= DRIFT:  # also where a state that was loaded says nonsense
            total, y = 0.0, engine.polish(y)
            eps = torch.finfo(self.dtype).eps
            if self.looks and not error * eps <= 2 * math.sqrt(eps):  # the square of it is more than rounding
                y = engine.polish(y)
                if not bool((self.factor.residual(y) <= tolerance(self.dtype)).all()):
                    raise too_long()
        return y, None if renews else total

    def _set_drift(self, drift: float) -> None:
        self._drift = drift
        if self.drift is None:
            self.drift = torch.zeros((), dtype=torch.float64, device="cpu")
        self.drift.fill_(drift)

    def _layout(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and dtype of the state."""
        return (self.shape[:1], real_dtype(self.dtype)) if key in self._numbers else (self.shape, self.dtype)

    def _keep(self, new: Tensor, old: Tensor | float) -> Tensor:
        return new if self.ok is None else where(self.ok, new, old)

    def _order(self, rows: Tensor) -> Tensor:
        return batch_last(rows) if self._batch_last else rows
