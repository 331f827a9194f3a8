"""The measured rows as tables: all of it, and what docs/solve.md shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SHOWN = {"TrustRegion": False, "pymanopt TR": True, "LBFGS": False, "ConjugateGradient": False, "pymanopt CG": True}
"""The solvers, in the order of columns, and which are those of the peer."""

BEGIN, END = "<!-- written by make bench-solve -->", "<!-- until here -->"


@dataclass
class Row:
    """Means over the starts. solved: how many of them reached the gradient norm."""

    problem: str
    title: str
    solver: str
    solved: int
    steps: float
    seconds: float
    evaluations: float
    norm: float
    value: float
    cannot: str | None = None
    starts: int = 5


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each problem and solver."""
    lines = [
        "| problem | solver | solved | iterations | ms | evaluations | gradient norm | mean value |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.cannot:
            lines.append(f"| {row.title} | {row.solver} | cannot | | | | | |")
            continue
        lines.append(
            f"| {row.title} | {row.solver} | {row.solved} of {row.starts} | {row.steps:.1f} | "
            f"{1e3 * row.seconds:.0f} | {row.evaluations:.0f} | {row.norm:.0e} | {row.value:.6g} |"
        )
    return "\n".join(lines) + "\n"


def short_table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each problem, of iterations and milliseconds."""
    lines = [f"| problem | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|"]
    for name in dict.fromkeys(row.problem for row in rows):
        cells = {row.solver: _cell(row) for row in rows if row.problem == name}
        title = next(row.title for row in rows if row.problem == name)
        lines.append(f"| {title} | {' | '.join(cells.get(solver, '') for solver in SHOWN)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    if row.cannot:
        return "cannot"
    missed = "" if row.solved == row.starts else f" ({row.solved} of {row.starts})"
    return f"{row.steps:.0f}, {1e3 * row.seconds:.0f}{missed}"


def first(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The problems on which one of ours is first in iterations or seconds among those that solved every start; and the
    others."""
    won: list[str] = []
    lost: list[str] = []
    for name in dict.fromkeys(row.problem for row in rows):
        mine, peers = (
            [r for r in rows if r.problem == name and r.solved and SHOWN[r.solver] == theirs]
            for theirs in (False, True)
        )
        most = max((row.solved for row in [*mine, *peers]), default=0)
        mine, peers = ([r for r in kind if r.solved == most] for kind in (mine, peers))
        ahead = bool(mine) and (
            not peers
            or min(r.steps for r in mine) <= min(r.steps for r in peers)
            or min(r.seconds for r in mine) <= min(r.seconds for r in peers)
        )
        (won if ahead else lost).append(name)
    return won, lost


def verdict(rows: Sequence[Row]) -> str:
    """On how many problems one of ours is first, and on which not; and seconds over those of the counterpart."""
    won, lost = first(rows)
    titles = {row.problem: row.title for row in rows}
    others = f"; not on {', '.join(titles[name] for name in lost)}" if lost else ""
    text = f"One of ours is first in iterations or seconds on {len(won)} of {len(won) + len(lost)}{others}."
    pairs = {"TrustRegion": "pymanopt TR", "LBFGS": "pymanopt CG", "ConjugateGradient": "pymanopt CG"}
    parts = []
    for mine, peer in pairs.items():
        known = {(row.problem, row.solver): row.seconds for row in rows if row.solved == row.starts}
        ratios = sorted(
            known[name, mine] / known[name, peer] for name in titles if (name, mine) in known and (name, peer) in known
        )
        if ratios:
            parts.append(f"{ratios[len(ratios) // 2]:.2f} for `{mine}()`")
    return f"{text} Seconds over those of the counterpart, the median: {', '.join(parts)}." if parts else text


def merged(old: Iterable[Row], new: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """The old rows, with those of the problems that were measured anew, in this order of problems."""
    measured = {row.problem for row in new}
    rows = [*(row for row in old if row.problem not in measured), *new]
    return sorted((row for row in rows if row.problem in order), key=lambda row: order.index(row.problem))


def write(docs: Path, new: Sequence[Row], order: Sequence[str]) -> None:
    """Rows into solving.json of this folder, and the table and the verdict of all of them into its solve.md."""
    data, page = docs / "solving.json", docs / "solve.md"
    old = [Row(**row) for row in json.loads(data.read_text())] if data.exists() else []
    rows = merged(old, new, order)
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    counts = sorted({row.starts for row in rows if not row.cannot})
    means = f"Means over {' or '.join(map(str, counts))} random starts each."
    page.write_text(f"{before}{BEGIN}\n\n{means}\n\n{short_table(rows)}\n{verdict(rows)}\n\n{END}{after}")
    data.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
