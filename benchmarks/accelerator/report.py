"""What the run found, as tables of docs/accelerators.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import table, write_between

DOCS = Path(__file__).parent.parent.parent / "docs"
Json = Mapping[str, Any]
SECTIONS = {
    "correct": "Right",
    "contract": "Contract of the manifolds, in float32, float64, complex64 and complex128",
    "waiting": "Without waiting, in CUDA graphs, compiled",
    "sharded": "Under fully_shard, one process",
}
STEPS = (
    "step of",
    "ours",
    "in a graph",
    "fused Adam",
    "our products alone",
    "/ products",
    "POGO",
    "geoopt",
    "max|QᵀQ - I|",
)
OURS_AND_LIMITS = ("ours", "ours, in a CUDA graph", "torch Adam, fused", "our products alone")
TARGETS = {"1024 x 1024": 1.5, "2048 x 2048": 1.5, "4096 x 4096": 1.5, "4096 x 256": 2.0}


def docs(found: Json | None) -> str:
    """What stands between the markers."""
    if found is None or found["pretended"]:
        return "*Not measured*: no run on a device is kept."
    machine, versions = found["machine"], found["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = f"Measured on {found['date']}: {machine['gpu']}, {machine['cores']} cores beside it; {software}."
    return "\n\n".join(filter(None, [head, _states(found), _steps(found), _others(found), _shards(found)]))


def _states(found: Json) -> str:
    """How many checks of each section were right; those that were not, with what was said."""
    lines, wrong = [], []
    for section, title in SECTIONS.items():
        checks = [c for c in found["checks"] if c["section"] == section]
        counts = [sum(c["state"] == state for c in checks) for state in ("ok", "WRONG", "not run")]
        if checks:
            lines.append([title, *map(str, counts)])
        wrong += [f"- **{c['name']}**: {c['why']}" for c in checks if c["state"] == "WRONG"]
    waits = sorted({c["name"].partition(": ")[2] for c in found["checks"] if "yes" in str(c["numbers"].get("waits"))})
    said = [f"Waits, as it is written: {', '.join(waits)}."] if waits else []
    return "\n\n".join([table(("checks", "right", "wrong", "not run"), lines, True), *said, *wrong])


def _steps(found: Json) -> str:
    lines = []
    for check in _fast(found, "Adam step, "):
        name, n = check["name"].removeprefix("Adam step, "), check["numbers"]
        if check["state"] != "ok":
            lines.append([name, *[check["state"]] * 8])
            continue
        ratio, target = n["ours / our products alone"], TARGETS.get(name)
        judged = "" if target is None else f" (goal {target:g}{', met' if ratio <= target else ', MISSED'})"
        times = [_time(n.get(who)) for who in OURS_AND_LIMITS]
        error = n.get("ours: max|QᵀQ - I|")
        off = "-" if error is None else f"{error:.0e}"
        lines.append([name, *times, f"{ratio:.2f}{judged}", _time(n["POGO"]), _time(n.get("geoopt")), off])
    return table(STEPS, lines, True)


def _others(found: Json) -> str:
    lines = []
    for check in (*_fast(found, "GRU"), *_fast(found, "weight")):
        times = {k: v for k, v in check["numbers"].items() if " / " not in k and ": " not in k}
        lines.append([check["name"], ", ".join(f"{name} {_time(value)}" for name, value in times.items())])
    return table(("one forward and backward pass", "medians"), lines, True)


def _shards(found: Json) -> str:
    start = "Adam step on one process, "
    steps = [c for c in found["checks"] if c["name"].startswith(start) and c["state"] == "ok"]
    lines = [
        [c["name"].removeprefix(start), _time(n["sharded"]), _time(n["whole"]), f"{n['sharded / whole']:.2f}"]
        for c in steps
        for n in (c["numbers"],)
    ]
    return table(("step of a shard", "sharded", "whole", "/ whole"), lines, True) if lines else ""


def _fast(found: Json, start: str) -> Sequence[Json]:
    return [c for c in found["checks"] if c["section"] == "fast" and c["name"].startswith(start)]


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return "-"
    return f"{microseconds / 1e3:.3g} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.3g} s"


def kept() -> Json | None:
    """The run that the docs show; None if there was none."""
    path = DOCS / "accelerator.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    write_between(DOCS / "accelerators.md", docs(kept()))


if __name__ == "__main__":
    main()
