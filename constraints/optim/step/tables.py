"""Tables of which a sparse gradient touches some rows: these move, and nothing is done to the others.

The rows, and the rows of their state, are copied out, moved as parameters of their own, and copied back.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifolds import Euclidean, Manifold, Oblique
from manifolds.engine import engine, settled

from .before import refuse_gradient
from .bucket import COUNTS
from .checks import Group
from .parts import key_of
from .plan import Member, Plan
from .work import Part

State = MutableMapping[Tensor, dict[str, Any]]


def tables_of(groups: Sequence[Group], part: Part, takes_rows: bool) -> Iterator[Member]:
    """Parameters (N, ...) with a sparse gradient, whose rows are points or batches of them; entries, where they are
    free. ValueError for a sparse gradient that does not name whole points."""
    place, group, params = part
    for p in params:
        manifold = group["manifold"] or Euclidean()
        if not takes_rows:
            refuse_gradient(groups, p, "a sparse layout", "Make its layer with sparse=False")
        _check_rows(groups, p, manifold)
        yield Member(p, manifold, place, group.get("capturable", False))


def _check_rows(groups: Sequence[Group], p: Tensor, manifold: Manifold) -> None:
    assert p.grad is not None
    if p.grad.sparse_dim() == 1 and manifold.ndim < p.dim():
        return
    way = "Make its layer with sparse=False"
    if isinstance(manifold, Oblique) and manifold.axis == -1 and p.dim() == 2:
        way = "Hold it on Sphere, whose points are rows, or make its layer with sparse=False"
    refuse_gradient(groups, p, f"a sparse layout, and its rows are no points of {manifold}", way)


class Rows:
    """The touched rows of tables, for one step."""

    def __init__(self, tables: Sequence[Member], state: State, numbers: frozenset[str]) -> None:
        self._tables, self._indices, grads, members = [], [], [], []
        self._taken: State = {}
        for table in tables:
            p, entry = table.parameter, state.get(table.parameter, {})
            assert p.grad is not None
            g = p.grad.coalesce()
            index, values = g.indices()[0], g.values()
            if not len(index):
                if "step" in entry:
                    _set_steps(state, p, entry["step"] + 1)
                continue
            rows = p.detach().index_select(0, index)
            self._taken[rows] = {
                key: value if key == "step" else value.index_select(0, index)
                for key, value in entry.items()
                if key == "step" or not _is_count(key)
            }
            members.append(table._replace(parameter=rows, table=p))
            self._tables.append(table)
            self._indices.append(index)
            grads.append(values)
        self.plan = Plan(members, (), self._taken, numbers)
        self.plan.read_gradients(grads)

    def write(self, state: State) -> None:
        """Put the rows, and those of their state, in their places, once the plan has moved them."""
        self.plan.publish(self._taken)
        for table, index, member in zip(self._tables, self._indices, self.plan.members, strict=True):
            p, kept = table.parameter.detach(), state.setdefault(table.parameter, {})
            for key, rows in self._taken[member.parameter].items():
                if key == "step":
                    _set_steps(state, table.parameter, rows)
                elif not _is_count(key):
                    if key not in kept:
                        kept[key] = _whole(table, key, rows)
                    kept[key].index_copy_(0, index, rows)
            p.index_copy_(0, index, member.parameter)


def _set_steps(state: State, p: Tensor, steps: Tensor) -> None:
    """In place, by which a plan knows that nobody else wrote to the state; not where others count by the same tensor,
    as after a step with a dense gradient."""
    entry = state[p]
    known = entry.get("step")
    if known is None or any(other is not entry and other.get("step") is known for other in state.values()):
        entry["step"] = steps
    else:
        known.copy_(steps)


def _is_count(key: str) -> bool:
    return key.partition(":")[0] in COUNTS


def _whole(table: Member, key: str, rows: Tensor) -> Tensor:
    """State of all rows, of which some are there: zero, or masters of the values in half precision."""
    p = table.parameter.detach()
    if key.partition(":")[0] != "master":
        return torch.zeros((len(p), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    parts = engine(table.manifold).split(p.to(rows.dtype))
    (master,) = (settled(f, x) for i, (f, x) in enumerate(parts) if key_of("master", i, len(parts)) == key)
    return master.clone() if master is p else master
