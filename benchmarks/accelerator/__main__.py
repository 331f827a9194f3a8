"""`python -m benchmarks.accelerator`: the prepared run on a CUDA device, most important first, one JSON as it goes.

Installs nothing, and takes the torch and the peers that it finds. With `--pretend` a CPU plays the device: small sizes,
to try the run itself.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..machine import machine, versions
from . import captured, correct, fast, sharded, waiting
from .checks import Check, Found, Place, run_all, write
from .pretend import Waits, pretended, without_waiting_on_cuda

SECONDS = {"waiting": 100.0, "correct": 150.0, "sharded": 60.0, "fast": 200.0, "contract": 120.0}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--pretend", action="store_true", help="a CPU plays the device")
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", help="checks whose name or section has one of these in it"
    )
    parser.add_argument("--seconds", type=float, help="for each section, in place of its own")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accelerator.json"))
    return parser.parse_args(arguments)


def all_checks(only: Sequence[str] | None = None) -> list[Check]:
    """Every check, most important first."""
    first = (*waiting.checks(), *captured.checks(), *correct.checks(), *sharded.checks())
    every = [correct.quietly(c) for c in (*first, *fast.checks(), *correct.contracts())]
    return [c for c in every if only is None or any(word in c.section or word in c.name for word in only)]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing is wrong."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if not options.pretend and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; --pretend tries the run on a CPU.")
    if options.pretend:
        with pretended():
            return run(Place(torch.device("cpu"), True, Waits), options)
    return run(Place(torch.device("cuda"), False, without_waiting_on_cuda), options)


def run(place: Place, options: argparse.Namespace) -> int:
    seconds = SECONDS if options.seconds is None else dict.fromkeys(SECONDS, options.seconds)
    head = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "pretended": place.pretended,
        "machine": machine(place.device),
        "versions": versions(),
    }
    found: list[Found] = []
    warnings.simplefilter("ignore")
    for each in run_all(all_checks(options.only), place, seconds):
        found.append(each)
        write(options.out, head, found)
        numbers = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in each.numbers.items())
        print(
            f"{each.seconds:6.1f} s  {each.state:8} {each.check.section}: {each.check.name}  {numbers}{each.why}",
            flush=True,
        )
    wrong = sum(each.state == "WRONG" for each in found)
    print(f"{len(found)} checks, {wrong} wrong; {options.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
