"""A check of the run on an accelerator, and the clock and the file that it runs by."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Where the checks run.

    pretended: the device is a CPU that takes the paths of an accelerator, to try the run itself; sizes are small and
        times say nothing.
    without_waiting: within it, a call that waits for the device raises.
    """

    device: torch.device
    pretended: bool
    without_waiting: Callable[[], AbstractContextManager[Any]]

    def size(self, full: int) -> int:
        return max(4, full // 16) if self.pretended else full

    def steps(self, full: int) -> int:
        return max(3, full // 20) if self.pretended else full

    def wait(self) -> None:
        if not self.pretended:
            torch.cuda.synchronize(self.device)


Numbers = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One thing to find out. run: numbers worth keeping, or an exception that says what is wrong."""

    section: str
    name: str
    run: Callable[[Place], Numbers]


@dataclass
class Found:
    """What became of a check: "ok", "WRONG" or "not run"."""

    check: Check
    state: str
    seconds: float = 0.0
    numbers: Numbers = field(default_factory=dict)
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.check.section,
            "name": self.check.name,
            "state": self.state,
            "seconds": round(self.seconds, 3),
            "numbers": {key: finite(value) for key, value in self.numbers.items()},
            "why": self.why,
        }


def finite(value: Any) -> Any:
    """JSON has no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_all(
    checks: Sequence[Check],
    place: Place,
    seconds: dict[str, float],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Found]:
    """Each check in turn. A section that has used its seconds runs no further, and what is left says so."""
    used = dict.fromkeys(seconds, 0.0)
    for check in checks:
        if used[check.section] >= seconds[check.section]:
            yield Found(check, "not run", why=f"{check.section} had used its {seconds[check.section]:g} s")
            continue
        begin = clock()
        try:
            found = Found(check, "ok", numbers=check.run(place))
        except Exception as error:
            found = Found(check, "WRONG", why=_why(error))
        found.seconds = clock() - begin
        used[check.section] += found.seconds
        yield found


def _why(error: Exception) -> str:
    """The error, and the lines of this project that it came through."""
    root = str(Path(__file__).parent.parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    way = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-6:]))
    return f"{type(error).__name__}: {str(error).strip()[:400]} [{way}]"


def write(path: Path, head: dict[str, Any], found: Sequence[Found]) -> None:
    """Everything so far, in place of the file that was there: a run that is cut off has lost nothing."""
    whole = {**head, "checks": [each.to_json() for each in found]}
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.with_suffix(".part")
    kept.write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    kept.replace(path)


def require(truth: bool, what: str) -> None:
    """AssertionError, also where Python runs without assertions."""
    if not truth:
        raise AssertionError(what)


def graph_of(call: Callable[[], object], place: Place) -> Callable[[], object]:
    """The call as a CUDA graph, whose kernels follow one another without Python, after three that are not; as it is
    where graphs are pretended. What cannot be captured leaves torch's generator as it was, which would fail ever
    after."""
    if place.pretended:
        return call
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except BaseException:
        generator.graphsafe_set_state(before)
        raise
    return graph.replay
