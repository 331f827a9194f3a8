"""A contestant in a process of its own, whose memory is limited and measured.

geotorch would take several matrices of 30,000 x 30,000, 3.6 GB each: it may fail, but not take the machine with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from .timing import Outcome, why

LIMIT_GIB = 6
SECONDS = 60
STEPS = 3


def memory_of(names: Iterable[str], quick: bool) -> Mapping[str, Outcome]:
    """Three training steps of each contestant of the long row, each alone: what it takes beyond what was imported."""
    return {name: run_guarded(name, quick, seconds=10 if quick else SECONDS) for name in names}


def run_guarded(name: str, quick: bool = False, limit_gib: float = LIMIT_GIB, seconds: float = SECONDS) -> Outcome:
    """The outcome, without times: it ran alone."""
    command = [sys.executable, "-m", "benchmarks.guarded", name, str(limit_gib), "quick" if quick else "full"]
    root, one_thread = Path(__file__).parent.parent, {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=seconds, check=False, env=one_thread
        )
    except subprocess.TimeoutExpired:
        return Outcome(cannot=f"not done after {seconds:g} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return Outcome(cannot=f"its process ended with {done.returncode}")
    found = json.loads(lines[-1])
    if found["cannot"] == "out of memory":
        found["cannot"] = f"out of memory (limit {limit_gib:g} GiB)"
    return Outcome(error=found["error"], cannot=found["cannot"], peak_bytes=found["peak_bytes"])


def main(name: str, limit_gib: float, quick: bool) -> None:
    """Prints one line of JSON."""
    import resource
    import warnings

    from . import peers
    from .jobs import LONG, Setting, long_contestant
    from .timing import infeasibility

    warnings.simplefilter("ignore")
    found: dict[str, object] = {"error": None, "cannot": None, "peak_bytes": None}
    makers = {**LONG, **peers.NEED_SQUARES}
    try:
        long_contestant(makers[name], Setting(), (64, 8)).step()  # imports and first calls
        begin = _peak()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + int(limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        contestant = long_contestant(makers[name], Setting(quick=quick))
        for _ in range(STEPS):
            contestant.step()
        found["peak_bytes"] = _peak() - begin
        found["error"] = infeasibility(contestant.points())
    except Exception as error:
        found["cannot"] = why(error)
    print(json.dumps(found))


def _peak() -> int:
    """The most memory that this program has had, in bytes. Not ru_maxrss, which a process inherits from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "quick")
