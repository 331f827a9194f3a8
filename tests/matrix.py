"""The tests on other seeds, instruction sets and numbers of threads: `make matrix`.

Each base seed takes one combination in turn, so that ten runs of the suite see every one of the six. `native` is what
the processor offers, with MKL as it comes; the others are the same arithmetic on every processor. Of a test with many
parameters each run takes a few, other ones than the run before: ten runs see more than `make test`.
Arguments go to pytest: `make matrix MATRIX=tests/manifolds`, or `MATRIX=--cases=16`.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys

SEEDS, CASES = range(1, 11), 4
COMBINATIONS = list(itertools.product(("default", "avx2", "native"), ("1", "2")))


def run(seed: int, instructions: str, threads: str, arguments: list[str]) -> tuple[int, str]:
    """(exit status, last line) of one run of pytest."""
    # two processes of two threads on two cores: a thread that spun as it waits would keep one from the others
    chosen = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    if instructions != "native":
        chosen |= {"ATEN_CPU_CAPABILITY": instructions, "MKL_CBWR": "COMPATIBLE"}
    options = [f"--base-seed={seed}", f"--hypothesis-seed={seed}", "-p", "randomly", f"--randomly-seed={seed}"]
    options += ["-n", "2", "--dist", "worksteal", f"--cases={CASES}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=400", *options, *arguments],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
    )
    sys.stderr.writelines(line + "\n" for line in done.stdout.splitlines() if re.match("FAILED|ERROR", line))
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]


def main(arguments: list[str]) -> int:
    worst = 0
    for seed, (instructions, threads) in zip(SEEDS, itertools.cycle(COMBINATIONS), strict=False):
        status, line = run(seed, instructions, threads, arguments)
        sys.stdout.write(f"seed {seed:2}  {instructions:7}  {threads} threads  {line}\n")
        sys.stdout.flush()
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
