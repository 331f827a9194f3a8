"""`python -m benchmarks`: every row, or those named; tables on the terminal, JSON and a figure."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import exactness, figure, quality, report
from .jobs import Row, Setting
from .machine import machine, versions
from .problems import PROBLEMS
from .profile import profile
from .results import verdict_to_json
from .rows import rows_for
from .timing import Budget

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = ("exactness", "quality")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; also: exactness, quality")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out; targets are not judged")
    parser.add_argument("--profile", metavar="NAME", help="where our step of this row spends its time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="in place of wall time, on a busy machine; with --threads 1"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, which has rows of its own")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=4.0, help="at least so long for each row")
    parser.add_argument("--exact-steps", type=int, default=1000, help="steps of exactness; 100000 for the claim itself")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where JSON and figure go")
    parser.add_argument(
        "--write-docs", action="store_true", help="also renew the page, the JSON and the figure in docs"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, as it is written to JSON."""
    device = torch.device(options.device)
    clock = time.process_time if options.processor_time else time.perf_counter
    setting = Setting(device, DTYPES[options.dtype], options.quick, clock)
    budget = Budget(rounds=3, seconds=0.0) if options.quick else Budget(seconds=options.seconds)
    rows = _chosen(rows_for(device), options.rows)
    exact = options.rows is None or "exactness" in options.rows
    solving = options.rows is None or "quality" in options.rows
    on_cpu = device.type == "cpu"
    rates = exactness.ALL_RATES if options.exact_steps > 10_000 else exactness.RATES
    steps = 20 if options.quick else options.exact_steps
    cells = len(exactness.cells(rates)) if exact and on_cpu else 0
    problems = [make(options.quick) for make in PROBLEMS] if solving and on_cpu else []
    count = len(rows) + cells + sum(len(problem.attempts) for problem in problems)
    where = machine(device)  # with the threads that the rows have
    with tqdm(total=count, unit="") as bar:

        def tick(what: str) -> None:
            bar.set_description(what)
            bar.update()

        measured = []
        for row in rows:
            tick(row.name)
            measured.append(row.run(setting, budget).to_json())
        torch.set_num_threads(1)  # what follows is too small to share
        seconds = 3.0 if options.exact_steps <= 10_000 else 120.0
        exact_cells = list(exactness.measure(steps, rates, seconds, tick)) if cells else []
        found = [(problem, quality.solve(problem, tick, clock)) for problem in problems]
    judged = [v for problem, solved in found for v in quality.verdicts(problem, solved)] if not options.quick else []
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": where,
        "versions": versions(),
        "options": {
            "dtype": options.dtype,
            "device": options.device,
            "quick": options.quick,
            "clock": "processor time" if options.processor_time else "wall time",
        },
        "rows": measured,
        "exactness": {
            "cells": [cell.to_json() for cell in exact_cells],
            "verdicts": [verdict_to_json(v) for v in (exactness.verdicts(exact_cells) if exact_cells else [])],
        },
        "quality": {
            "titles": {problem.name: problem.title for problem, _ in found},
            "solved": [one.to_json() for _, solved in found for one in solved],
            "verdicts": [verdict_to_json(v) for v in judged],
        },
    }


def _chosen(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    known = [row.name for row in rows] + list(SECTIONS)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SystemExit(f"there is no row {', '.join(unknown)}; there are {', '.join(known)}.")
    return [row for row in rows if names is None or row.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 also where a target is missed: the table says so."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.processor_time and (options.threads != 1 or options.device != "cpu"):
        raise SystemExit("--processor-time adds up the time of all threads: it needs --threads 1, on a processor.")
    if options.write_docs and (options.rows or options.quick):
        raise SystemExit("--write-docs renews the whole page: leave out --rows and --quick.")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device here.")
    if torch.get_num_threads() != options.threads:
        torch.set_num_threads(options.threads)
    rows = rows_for(torch.device(options.device))
    if options.list:
        print("\n".join([f"{row.name:16} {row.title}" for row in rows] + list(SECTIONS)))
        return 0
    if options.profile:
        (row,) = _chosen(rows, [options.profile])
        print(profile(row, Setting(torch.device(options.device), DTYPES[options.dtype], options.quick)))
        return 0
    results = run(options)
    print(report.terminal(results))
    save(results, options.out)
    print(f"\n{options.out / 'benchmarks.json'}, {options.out / 'benchmarks.png'}")
    if options.write_docs:
        text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
        (DOCS / "benchmarks.json").write_text(text + "\n")
        figure.draw(results, DOCS / "figures" / "benchmarks.png")
        report.write_between(DOCS / "benchmarks.md", report.docs(results))
        report.write_between(DOCS.parent / "README.md", report.readme(results))
        print("README.md, docs/benchmarks.md, docs/benchmarks.json, docs/figures/benchmarks.png")
    return 0


def save(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "benchmarks.json").write_text(text + "\n")
    if results["rows"]:
        figure.draw(results, folder / "benchmarks.png")


if __name__ == "__main__":
    sys.exit(main())
