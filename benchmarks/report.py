"""The numbers of a run as tables: on the terminal, in the docs, in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
QUIET = 0.9
Json = Mapping[str, Any]

README_ROWS = (
    "gru",
    "step-3x512",
    "step-1024x64",
    "step-2048x128",
    "step-64x64x64",
    "step-100-64",
    "step-20000x3",
    "map-cayley",
    "map-exp",
    "map-2048x128",
)


# Words for numbers ----------------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    """Three digits, in ms below a second."""
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def error(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.0e}"


def word(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "not judged"}[met]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 0.01 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Columns of equal width; as markdown with rules."""
    cells = [[cell.replace("|", r"\|") if markdown else cell for cell in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    rows = ["| " + " | ".join(line) + " |" for line in padded]
    return "\n".join([rows[0], rule, *rows[1:]])


# Tables ---------------------------------------------------------------------------------------------------


def verdict_lines(results: Json) -> list[list[str]]:
    """One line for each target: row, what is compared, target, measured, verdict, worst error of ours."""
    lines = []
    for row in results["rows"]:
        errors = {c["name"]: c["error"] for c in row["contestants"]}
        for v in row["verdicts"]:
            ours = v["what"].split(":")[0].split(" / ")[0]
            shown = [row["title"], v["what"], v["target"], number(v["measured"]), word(v["met"])]
            lines.append([*shown, error(errors.get(ours))])
    sections = (("exactness", results["exactness"]["verdicts"]), ("quality", results["quality"]["verdicts"]))
    for name, verdicts in sections:
        lines += [[name, v["what"], v["target"], number(v["measured"]), word(v["met"]), "-"] for v in verdicts]
    return lines


TARGETS = ("row", "ours / against", "target", "measured", "", "max|QᵀQ-I|")


def contestant_lines(results: Json) -> list[list[str]]:
    """Everybody: median and quartiles, the ratio to the first of ours, the error, or why not."""
    lines = []
    for row in results["rows"]:
        first = next((c["median_s"] for c in row["contestants"] if c["name"].startswith("ours")), None)
        for c in row["contestants"]:
            spread = "-" if c["median_s"] is None else f"{seconds(c['q1_s'])} to {seconds(c['q3_s'])}"
            ratio = "-" if first is None or c["median_s"] is None else f"{c['median_s'] / first:.2f}"
            memory = "-" if c["peak_bytes"] is None else f"{c['peak_bytes'] / 2**20:.0f} MiB"
            remark = c["cannot"] or ""
            lines.append(
                [row["title"], c["name"], seconds(c["median_s"]), spread, ratio, error(c["error"]), memory, remark]
            )
    return [[("" if i and lines[i - 1][0] == line[0] else line[0]), *line[1:]] for i, line in enumerate(lines)]


CONTESTANTS = ("row", "who", "median", "quartiles", "/ ours", "max|QᵀQ-I|", "memory", "")


def exactness_lines(results: Json) -> list[list[str]]:
    """One line for each engine and dtype: the worst error at each learning rate."""
    cells = results["exactness"]["cells"]
    rates = sorted({cell["lr"] for cell in cells})
    lines = []
    for name, dtype in dict.fromkeys((cell["engine"], cell["dtype"]) for cell in cells):
        mine = {cell["lr"]: cell for cell in cells if (cell["engine"], cell["dtype"]) == (name, dtype)}
        lines.append([dtype, name, *[_exact(mine[lr]) for lr in rates], next(iter(mine.values()))["cannot"] or ""])
    return lines


def _exact(cell: Json) -> str:
    return "cannot" if cell["cannot"] else f"{error(cell['error'])} ({cell['steps']:,})"


def exactness_header(results: Json) -> list[str]:
    rates = sorted({cell["lr"] for cell in results["exactness"]["cells"]})
    return ["dtype", "who", *[f"lr {lr:g} (steps)" for lr in rates], ""]


def quality_lines(results: Json) -> list[list[str]]:
    lines = []
    for s in results["quality"]["solved"]:
        steps = "-" if s["steps"] is None else f"{s['steps']:,}"
        lr = "-" if s["lr"] is None else f"{s['lr']:g}"
        gap = s["gap"]
        got = f"not reached, gap {gap if isinstance(gap, str) else f'{gap:.0e}'}" if gap is not None else "not reached"
        remark = s["cannot"] or ("" if s["steps"] is not None else got)
        lines.append([s["problem"], s["engine"], lr, steps, seconds(s["seconds"]), remark])
    return lines


QUALITY = ("problem", "who", "best lr", "steps", "time", "")


def terminal(results: Json) -> str:
    """All tables, targets last, where a reader of a terminal looks."""
    return "\n\n".join([*_sections(results, markdown=False), _missed(results), *_busy(results)])


def docs(results: Json) -> str:
    """What stands between the markers of docs/benchmarks.md."""
    machine, versions = results["machine"], results["versions"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}"
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = _sections(results, markdown=True)
    titles = ["### Targets", "### Everybody", "### Exactness", "### Quality"]
    order = [parts[-1], *parts[:-1]]
    present = [f"{t}\n\n{p}" for t, p in zip(titles, order, strict=True) if p]
    reasons = [f"- **{row['title']}**: {row['reason']}" for row in results["rows"] if row["reason"]]
    why = ["### Why a target is missed\n\n" + "\n".join(reasons)] if reasons else []
    head = f"Measured on {results['date']}, {results['options']['clock']}: {where}; {software}."
    return "\n\n".join([head, _missed(results), *_busy(results), *present, *why])


def _sections(results: Json, markdown: bool) -> list[str]:
    everybody = table(CONTESTANTS, contestant_lines(results), markdown) if results["rows"] else ""
    exact = results["exactness"]["cells"]
    exactness = table(exactness_header(results), exactness_lines(results), markdown) if exact else ""
    solved = results["quality"]["solved"]
    quality = table(QUALITY, quality_lines(results), markdown) if solved else ""
    targets = table(TARGETS, verdict_lines(results), markdown)
    parts = [everybody, exactness, quality, targets]
    return parts if markdown else [part for part in parts if part]


def _busy(results: Json) -> list[str]:
    """A warning where the machine had other things to do, which wall times show."""
    if results["options"]["clock"] != "wall time":
        return []
    busy = [row["title"] for row in results["rows"] if row["running"] < QUIET]
    return [f"The machine was busy, and ratios are rough, in: {'; '.join(busy)}."] if busy else []


def _missed(results: Json) -> str:
    words = [line[4] for line in verdict_lines(results)]
    met, missed, other = words.count("met"), words.count("MISSED"), words.count("not judged")
    return f"{met} targets met, {missed} MISSED, {other} not judged."


def readme(results: Json) -> str:
    """A short markdown table, one line for each of `README_ROWS`: ours against others, and which goals are reached."""
    lines = []
    for row in results["rows"]:
        judged = [v for v in row["verdicts"] if v["measured"] is not None]
        if row["name"] not in README_ROWS or not judged:
            continue
        missed = [f"MISSED: {_goal(v)}" for v in row["verdicts"] if v["met"] is False]
        ratios = ", ".join(_ratio(v) for v in judged)
        lines.append([row["title"], ratios, "; ".join(missed) or "reached"])
    return table(("what is timed", "ours, beside others", "goal"), lines, markdown=True)


RIVALS = {"one product (u)": "one matrix product", "free": "the unconstrained one"}


def _rival(verdict: Json) -> str:
    rival = str(verdict["what"]).partition(" / ")[2]
    return RIVALS.get(rival, rival)


def _goal(verdict: Json) -> str:
    """In words, of a target such as "≤ 2.5x" or "≥ 2x faster"."""
    bound = str(verdict["target"]).strip("≤≥ ").removesuffix(" faster")
    if "faster" in verdict["target"]:
        return f"at least {bound} as fast as {_rival(verdict)}"
    return f"at most {bound} the time of {_rival(verdict)}"


def _ratio(verdict: Json) -> str:
    """In words; with the engine where there are two."""
    measured, ours = number(verdict["measured"]), str(verdict["what"]).partition(" / ")[0]
    who = f" ({ours.removeprefix('ours, ')})" if ours != "ours" else ""
    if "faster" in verdict["target"]:
        return f"{measured}x as fast as {_rival(verdict)}{who}"
    return f"{measured}x the time of {_rival(verdict)}{who}"


def write_between(page: Path, tables: str) -> None:
    """Replace what is between the markers of a page. Raises ValueError if the page does not have them."""
    text = page.read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{page.name} needs the lines {BEGIN} and {END}, between which the tables go.")
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
