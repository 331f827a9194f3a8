"""The runs of `benchmarks.gpt`: their file, and what docs/transformer.md shows of them.

The text is that of the Python that runs, and differs from one to the next: losses are compared where that is the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .report import BEGIN, END, table

DOCS = Path(__file__).parent.parent / "docs"
FILE, PAGE, FIGURE = DOCS / "gpt.json", DOCS / "transformer.md", DOCS / "figures" / "gpt.png"
COLORS = ("#6b6b6b", "#e69f00", "#0072b2", "#d55e00", "#009e73")
MIDDLE, WIDTHS = 128, (64, 128, 256)


class Run(NamedTuple):
    """One training."""

    kind: str
    width: int
    lr: float
    seed: int


class Found(NamedTuple):
    """Losses over the seeds."""

    mean: float
    least: float
    largest: float
    seeds: int


Losses = Mapping[Run, float]


def read(file: Path) -> dict[str, dict[Run, float]]:
    """The losses, by "Python 3.12.3 on a device"."""
    lines = file.read_text().splitlines() if file.exists() else []
    found: dict[str, dict[Run, float]] = {}
    for row in map(json.loads, lines):
        run = Run(row["kind"], row["width"], row["lr"], row["seed"])
        found.setdefault(where(row["python"], row["device"]), {})[run] = row["loss"]
    return found


def where(python: str, device: str) -> str:
    return f"Python {python}, {device}"


def save(file: Path, run: Run, loss: float, python: str, device: str) -> None:
    """One line more."""
    with file.open("a") as out:
        out.write(json.dumps({**run._asdict(), "loss": loss, "python": python, "device": device}) + "\n")


def write_page(kinds: Sequence[str], file: Path = FILE, page: Path = PAGE, figure: Path = FIGURE) -> None:
    """The tables and the figure, by the runs that are there."""
    losses = read(file)
    before, rest = page.read_text().split(BEGIN)
    parts = [f"{name}:\n\n{tables(each, kinds)}" for name, each in losses.items()]
    page.write_text("\n\n".join([before + BEGIN, *parts, END + rest.split(END)[1]]))
    draw(losses, kinds, figure)


# Numbers ---------------------------------------------------------------------------------------------------


def over_seeds(losses: Losses, kind: str, width: int, lr: float) -> Found | None:
    """None where there is no run."""
    found = [loss for run, loss in losses.items() if run[:3] == (kind, width, lr)]
    return Found(sum(found) / len(found), min(found), max(found), len(found)) if found else None


def rates(losses: Losses, width: int, kind: str) -> list[float]:
    return sorted({run.lr for run in losses if (run.width, run.kind) == (width, kind)})


def in_widths(losses: Losses, kinds: Sequence[str]) -> list[str]:
    """The kinds that were tried at other widths too."""
    return [kind for kind in kinds if any(run.width != MIDDLE and run.kind == kind for run in losses)]


# Tables ----------------------------------------------------------------------------------------------------


def tables(losses: Losses, kinds: Sequence[str]) -> str:
    """One at d = 128, one of the other widths; means over the seeds. The best rates are bold."""
    some, others = [kind for kind in kinds if rates(losses, MIDDLE, kind)], in_widths(losses, kinds)
    widths = [width for width in WIDTHS if width != MIDDLE]
    over = [(f"{k}, d = {width}", k, width) for k in others for width in widths if rates(losses, width, k)]
    made = [
        _table(f"d = {MIDDLE}, {_seeds(losses, (MIDDLE,))}; lr", losses, [(kind, kind, MIDDLE) for kind in some]),
        _table(f"{_seeds(losses, widths)}; lr", losses, over),
    ]
    return "\n\n".join(each for each in made if each)


def _seeds(losses: Losses, widths: Collection[int]) -> str:
    seeds = len({run.seed for run in losses if run.width in widths})
    return f"mean of {seeds} seeds" if seeds > 1 else "one seed"


def _table(title: str, losses: Losses, rows: Sequence[tuple[str, str, int]]) -> str:
    columns = sorted({lr for _, kind, width in rows for lr in rates(losses, width, kind)})
    found = {name: [over_seeds(losses, kind, width, lr) for lr in columns] for name, kind, width in rows}
    most = max((each.seeds for row in found.values() for each in row if each), default=1)
    lines = [[name, *_cells(each, most)] for name, each in found.items()]
    return table([title, *map(_rate, columns)], lines, markdown=True) if lines else ""


def _cells(found: Sequence[Found | None], most: int) -> list[str]:
    means = [each.mean for each in found if each]
    least = min(means) if len(means) > 1 else None  # one is not the best of anything
    return [_cell(each, least, most) for each in found]


def _cell(each: Found | None, least: float | None, most: int) -> str:
    """most: the seeds that the table is over, where this has fewer."""
    if each is None:
        return "-"
    shown = f"**{each.mean:.2f}**" if each.mean == least else f"{each.mean:.2f}"
    fewer = "one seed" if each.seeds == 1 else f"{each.seeds} seeds"
    return shown if each.seeds == most else f"{shown} ({fewer})"


def _rate(lr: float) -> str:
    """1e-3 or 1.4e-2, without the zeros of Python."""
    return f"{lr:.1e}".replace(".0e", "e").replace("e-0", "e-")


# The figure ------------------------------------------------------------------------------------------------


def draw(losses: Mapping[str, Losses], kinds: Sequence[str], file: Path) -> None:
    """Loss by rate, a column for each width; a row for each text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (11, 3.6 * len(losses))
    figure, axes = plt.subplots(
        len(losses), len(WIDTHS), figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for row, (name, each) in zip(axes, losses.items(), strict=True):
        row[0].set(ylabel=f"validation loss\n{name}")
        for axis, width in zip(row, WIDTHS, strict=True):
            for kind, color in zip(kinds, COLORS, strict=True):
                _curve(axis, each, kind, width, color=color, marker=".", label=kind)
            axis.set(title=f"d = {width}, range of the seeds", xscale="log", xlabel="learning rate")
            axis.grid(alpha=0.3)
    if lines := axes[0, WIDTHS.index(MIDDLE)].get_legend_handles_labels()[0]:
        figure.legend(handles=lines, loc="outside upper center", ncols=len(kinds), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(axes: Any, losses: Losses, kind: str, width: int, **style: Any) -> None:
    columns = rates(losses, width, kind)
    found = [each for lr in columns if (each := over_seeds(losses, kind, width, lr))]
    if found:
        spread = [[each.mean - each.least for each in found], [each.largest - each.mean for each in found]]
        axes.errorbar(columns, [each.mean for each in found], yerr=spread, capsize=3, linewidth=1.5, **style)
