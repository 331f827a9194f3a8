"""One figure: how many times as long the others take, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLORS = {"ours": "#0072b2", "geoopt": "#d55e00", "POGO": "#e69f00", "torch": "#6b6b6b", "geotorch": "#009e73"}
MARKERS = {"ours": "D", "geoopt": "o", "POGO": "s", "torch": "^", "geotorch": "v"}


def draw(results: Mapping[str, Any], file: Path) -> None:
    """A dot for each contestant at its median over that of ours, on a log axis; a tick for one product."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [
        row
        for row in results["rows"]
        if any(c["name"].startswith("ours") and c["median_s"] for c in row["contestants"])
    ]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    seen: set[str] = set()
    for y, row in enumerate(reversed(rows)):
        unit = next(c["median_s"] for c in row["contestants"] if c["name"].startswith("ours") and c["median_s"])
        axes.axhline(y, color="#eeeeee", linewidth=0.8, zorder=0)
        for c in row["contestants"]:
            family = _family(c["name"])
            if c["median_s"] is None:
                continue
            x = c["median_s"] / unit
            if family is None:
                axes.plot(x, y, "|", color="black", markersize=11, label=None if "u" in seen else "one product")
                seen.add("u")
                continue
            hollow = c["name"] in ("torch Adam", "free")
            label = "no constraint" if hollow else family
            face = "none" if hollow else COLORS[family]
            style: dict[str, Any] = {"markerfacecolor": face, "markersize": 7, "linestyle": ""}
            axes.plot(x, y, MARKERS[family], color=COLORS[family], label=None if label in seen else label, **style)
            seen.add(label)
    axes.axvline(1, color=COLORS["ours"], linewidth=0.8)
    axes.set(xscale="log", xlabel="time, in that of ours (right: slower)", yticks=range(len(rows)))
    axes.set_yticklabels([row["title"] for row in reversed(rows)])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, ncols=7, loc="lower center", bbox_to_anchor=(0.4, 1), columnspacing=1, handletextpad=0.2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _family(name: str) -> str | None:
    """The library; None for the product. What is written by hand or free is torch's."""
    if name.startswith("one product"):
        return None
    return next((family for family in COLORS if name.startswith(family) and family != "torch"), "torch")
