"""Points and tangent vectors as functions of the user see them: in the form of x0, a call for each start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .space import Rows, Space


@dataclass(frozen=True)
class Outside:
    """names: keys of dicts, None for a tensor by itself. starts: how many there are, each of so many problems; None
    where there is no axis of problems."""

    names: Sequence[Any] | None
    starts: int = 1
    problems: int | None = None

    def named(self, parts: Sequence[Tensor]) -> Any:
        """A tensor, or a dict of them."""
        return parts[0] if self.names is None else dict(zip(self.names, parts, strict=True))

    def apart(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """With K starts of B problems, (K, B, *shape)."""
        if self.starts > 1 and self.problems is not None:
            return [part.unflatten(0, (self.starts, self.problems)) for part in parts]
        return list(parts)

    def calls(self, parts: Sequence[Tensor]) -> list[Any]:
        """What each call is given."""
        if self.starts == 1:
            return [self.named(parts)]
        apart = self.apart(parts)
        return [self.named([part[k] for part in apart]) for k in range(self.starts)]

    def tangent(self, who: str, function: Callable[[Any, Any], Any], space: Space, x: Rows, v: Rows) -> Rows:
        """function(point, vector), which gives a tangent vector there, at rows x for coordinates v.

        Raises TypeError or ValueError where it does not give the form that it was given, or writes into it.
        """
        u = space.vector(x, v)
        versions = x._version, u._version
        points, vectors = (self.calls([part.detach() for part in space.split(rows)]) for rows in (x, u))
        found = [self._parts(who, function(*pair), pair[1]) for pair in zip(points, vectors, strict=True)]
        if (x._version, u._version) != versions:
            raise ValueError(f"the {who} changes its arguments in place. Let it work on clones.")
        parts = [torch.stack(each) if self.starts > 1 else each[0] for each in zip(*found, strict=True)]
        if self.starts > 1 and self.problems is not None:
            parts = [part.flatten(0, 1) for part in parts]
        return space.coordinates(x, space.join(parts))

    def _parts(self, who: str, value: Any, like: Any) -> list[Tensor]:
        wanted = like if isinstance(like, Mapping) else {None: like}
        given = value if isinstance(like, Mapping) else {None: value}
        if not isinstance(given, Mapping) or given.keys() != wanted.keys():
            said = f"a dict of {sorted(map(str, given))}" if isinstance(given, Mapping) else f"a {type(given).__name__}"
            raise TypeError(f"the {who} returns a dict of tensors with the names {sorted(wanted)}; got {said}.")
        for name, v in wanted.items():
            got = given[name]
            if not isinstance(got, Tensor):
                raise TypeError(f"the {who} returns tensors like the vector it is given; got a {type(got).__name__}.")
            if got.shape != v.shape or got.dtype != v.dtype:
                raise ValueError(
                    f"the {who} returns a tangent vector of the shape {tuple(v.shape)} and dtype {v.dtype} of the one "
                    f"it is given; got shape {tuple(got.shape)} and dtype {got.dtype}."
                )
        return [given[name].detach() for name in wanted]
