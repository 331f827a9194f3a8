"""check_manifold: the contract of a manifold, stated as theorems and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..base import Manifold
from . import (  # noqa: F401  they state theorems
    _calls,
    _derivatives,
    _engine,
    _geodesics,
    _points,
    _reach,
    _tangents,
    _values,
)
from ._case import THEOREMS, Case, Finding, Theorem

SHOWN = 4
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


class Failure(NamedTuple):
    """A theorem that a manifold breaks in one dtype, and what shows it.

    >>> Failure("project is linear", "project(x, a)", torch.float32, "1 > 0").theorem
    'project is linear'
    """

    theorem: str
    formula: str
    dtype: torch.dtype
    shown: str


class ConformanceError(AssertionError):
    """The theorems that a manifold breaks, one a line: name, formula, measured against allowed, dtypes.

    failures: one `Failure` for each theorem and dtype.
    skipped: names of the theorems left out, as they build on broken ones.

    >>> class Flat(Sphere):
    ...     def project(self, x, a):
    ...         return a
    >>> try:
    ...     check_manifold(Flat(), (4,), dtype=torch.float64)
    ... except ConformanceError as error:
    ...     print(len(error.theorems) > 0)
    True
    """

    def __init__(self, subject: str, failures: Sequence[Failure], skipped: Sequence[str]) -> None:
        super().__init__(subject, failures, skipped)
        self.subject, self.failures, self.skipped = subject, tuple(failures), tuple(skipped)

    @property
    def theorems(self) -> tuple[str, ...]:
        """Names of the broken theorems, in the order of the report."""
        return tuple(dict.fromkeys(f.theorem for f in self.failures))

    def __str__(self) -> str:
        width = max(map(len, self.theorems), default=0)
        lines = [f"{self.subject} breaks {len(self.theorems)} theorem{'s'[: len(self.theorems) != 1]} of the contract:"]
        for name in self.theorems:
            own = [f for f in self.failures if f.theorem == name]
            dtypes = ", ".join(str(f.dtype).removeprefix("torch.") for f in own)
            lines.append(f"  {name:{width}}  {own[-1].formula}; {own[-1].shown}  [{dtypes}]")
        if self.skipped:
            lines.append(f"Not evaluated, as they build on these: {', '.join(self.skipped)}.")
        return "\n".join(lines)


def check_manifold(
    manifold: Manifold | type[Manifold],
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> None:
    """Measures every theorem of the contract of `Manifold` on points of this shape, and reports all that fail.

    shape: that of the points, batch axes included, 6 meaning (6,); small sizes will do, as a theorem that fails,
        fails there too.
    dtype: one or several; None means float32, float64, complex64 and complex128.
    seed: of all random draws; the result is a function of the arguments.
    Raises ConformanceError, with one line for each broken theorem. NaN breaks a theorem, and so does an exception.
    Source: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), sections 3.6, 4.8 and 6.8.

    >>> check_manifold(Stiefel, (4, 2), dtype=torch.float64)
    """
    __tracebackhide__ = True  # pytest then ends at the call, with the report
    manifold = manifold() if isinstance(manifold, type) else manifold
    given = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not all(hasattr(size, "__index__") for size in given):
        raise TypeError(f"the shape of points is written as 4 or (4, 3); got {shape!r}.")
    shape = given
    dtypes = DTYPES if dtype is None else (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    place = torch.empty(0).device if device is None else torch.device(device)
    failures: list[Failure] = []
    skipped: dict[str, None] = {}
    for one in dtypes:
        broken = _check(Case(manifold, shape, one, place, seed), failures)
        skipped.update(dict.fromkeys(broken))
    if failures:
        names = {f.theorem for f in failures}
        subject = f"{manifold!r} on points of shape {shape}"
        raise ConformanceError(subject, failures, [name for name in skipped if name not in names])


def _check(case: Case, failures: list[Failure]) -> list[str]:
    """Adds the failures of one dtype, and gives the names of the theorems left out."""
    broken: set[str] = set()
    skipped: list[str] = []
    for theorem in _in_order():
        if not theorem.applies(case):
            continue
        if broken.intersection(theorem.needs):
            skipped.append(theorem.name)
        elif shown := _measure(theorem, case):
            failures.append(Failure(theorem.name, theorem.formula, case.dtype, shown))
        else:
            continue
        broken.add(theorem.name)
    return skipped


def _measure(theorem: Theorem, case: Case) -> str:
    """What shows that the theorem is broken; nothing where it holds."""
    try:
        findings = [finding for finding in theorem.check(case) if not finding.holds]
    except Exception as error:
        return f"raised {type(error).__name__}: {error}".split("\n")[0]
    return _shown(findings)


def _shown(findings: list[Finding]) -> str:
    statements = [f.where for f in findings if f.statement]
    worst: dict[str, Finding] = {}
    for f in findings:  # for each call or value, the largest number; NaN is larger than any
        if f.where not in worst or not f.measured <= worst[f.where].measured:
            worst[f.where] = f
    numbers = [f"{f.measured:.2g} > {f.allowed:.2g}" + f" ({where})" * bool(where) for where, f in worst.items()]
    texts = list(dict.fromkeys(statements or numbers))
    return "; ".join(texts[:SHOWN]) + f"; and {len(texts) - SHOWN} more" * (len(texts) > SHOWN)


def _in_order() -> list[Theorem]:
    """Every theorem after those it builds on, else as stated."""
    order: dict[str, Theorem] = {}
    known = {theorem.name: theorem for theorem in THEOREMS}

    def place(theorem: Theorem) -> None:
        for need in theorem.needs:
            if need not in order:
                place(known[need])
        order[theorem.name] = theorem

    for theorem in THEOREMS:
        if theorem.name not in order:
            place(theorem)
    return list(order.values())
