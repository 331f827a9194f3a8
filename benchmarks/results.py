"""What a run found: outcomes, targets and verdicts, as they are shown and as they are written to JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .timing import Outcome


@dataclass(frozen=True)
class Target:
    """A ratio of medians to reach: time(against) / time(ours) >= bound if "faster", else time(ours) / time(against)
    <= bound. Several names in `against`: the fastest of them. hope_only: not to reach it is no miss."""

    kind: Literal["faster", "cost"]
    ours: str
    against: tuple[str, ...]
    bound: float
    hope: float
    hope_only: bool = False

    def text(self) -> str:
        bound = f"≥ {self.bound:g}x faster" if self.kind == "faster" else f"≤ {self.bound:g}x"
        return f"hoped {bound}" if self.hope_only else bound

    def judge(self, outcomes: Mapping[str, Outcome]) -> Verdict:
        """Met or missed; neither where nobody it compares with was measured."""
        rivals = {name: outcomes[name].median for name in self.against if name in outcomes and outcomes[name].seconds}
        if not rivals:
            reasons = [f"{n}: {outcomes[n].cannot if n in outcomes else 'not run'}" for n in self.against]
            return self._verdict("; ".join(reasons), None, None)
        best = min(rivals, key=lambda name: rivals[name])
        if self.ours not in outcomes or not outcomes[self.ours].seconds:
            return self._verdict(best, None, False)
        ratio = rivals[best] / outcomes[self.ours].median
        if self.kind == "cost":
            ratio = 1 / ratio
        met = ratio >= self.bound if self.kind == "faster" else ratio <= self.bound
        return self._verdict(best, ratio, None if self.hope_only and not met else met)

    def _verdict(self, against: str, measured: float | None, met: bool | None) -> Verdict:
        return Verdict(f"{self.ours} / {against}", self.text(), self.hope, measured, met)


@dataclass(frozen=True)
class Verdict:
    """One target: what was compared, the bound in words, what was hoped for, the number measured, and whether it is
    met; None where it could not be judged."""

    what: str
    target: str
    hope: float
    measured: float | None
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "MISSED", None: "not judged"}[self.met]


@dataclass(frozen=True)
class RowResult:
    """One row of the table. reason: why a target is missed, where one is; running: the share of the time that the
    main thread had a processor, near 1 on a machine with nothing else to do."""

    name: str
    title: str
    outcomes: Mapping[str, Outcome]
    verdicts: Sequence[Verdict]
    reason: str = ""
    running: float = 1.0

    def to_json(self) -> dict[str, Any]:
        missed = any(verdict.met is False for verdict in self.verdicts)
        return {
            "name": self.name,
            "title": self.title,
            "contestants": [{"name": name, **_outcome(o)} for name, o in self.outcomes.items()],
            "verdicts": [verdict_to_json(v) for v in self.verdicts],
            "reason": self.reason if missed else "",
            "running": self.running,
        }


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    measured = verdict.measured if verdict.measured is None or math.isfinite(verdict.measured) else None
    return {
        "what": verdict.what,
        "target": verdict.target,
        "hope": verdict.hope,
        "measured": measured,
        "met": verdict.met,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    times = outcome.seconds
    return {
        "median_s": outcome.median if times else None,
        "q1_s": outcome.quantile(0.25) if times else None,
        "q3_s": outcome.quantile(0.75) if times else None,
        "rounds": len(times),
        # JSON has no NaN; a weight with one is as far from feasible as can be
        "error": "nan" if outcome.error is not None and not math.isfinite(outcome.error) else outcome.error,
        "peak_bytes": outcome.peak_bytes,
        "cannot": outcome.cannot,
    }
