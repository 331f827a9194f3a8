"""`python -m benchmarks.lifecycle`: run every check on every entrant, and write the table into docs/lifecycle.md."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from .checks import CHECKS
from .common import CostlyError, WrongError
from .entrants import ENTRANTS, Entrant

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
BEGIN, END = "<!-- lifecycle: begin -->", "<!-- lifecycle: end -->"
WORKS, NONE = "works", "–"  # noqa: RUF001


def verdict(item: str, entrant: Entrant, seconds: int = 120) -> str:
    """What the check says of the entrant: "works", "error: ...", "**silently wrong**: ...", or a dash."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end within {seconds} s")

    torch.manual_seed(0)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHECKS[item](entrant)
    except WrongError as wrong:
        return f"**silently wrong**: {wrong}"
    except CostlyError as cost:
        return f"{WORKS}, {cost}"
    except NotImplementedError as error:
        return NONE if not str(error) else f"error: {_short(error)}"
    except ImportError as error:
        return f"not installed: {error.name}"
    except Exception as error:
        return f"error: {_short(error)}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return WORKS


def table(items: Sequence[str], entrants: Sequence[Entrant]) -> list[list[str]]:
    """One row of verdicts an item."""
    return [[verdict(item, entrant) for entrant in entrants] for item in tqdm(items, file=sys.stderr)]


def markdown(items: Sequence[str], entrants: Sequence[Entrant], rows: Sequence[Sequence[str]]) -> str:
    head = ["", *(f"`{each.name}`" if each in ENTRANTS[:2] else each.name for each in entrants)]
    lines = [head, ["---"] * len(head), *([item, *row] for item, row in zip(items, rows, strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(text: str, page: Path = PAGE) -> None:
    """Put the table between the markers of the page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _short(error: BaseException) -> str:
    """The kind of the error and the beginning of what it says, as one cell."""
    said = re.sub(r"\s+", " ", str(error)).replace("|", "/").replace("<", "").replace(">", "").replace("`", "")
    said = said.strip() if len(said) <= 90 else said[:90].rsplit(" ", 1)[0] + " …"
    return f"{type(error).__name__}, “{said}”"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.lifecycle", description=__doc__)
    parser.add_argument("--print", action="store_true", help="only print the table, leave the page as it is")
    parser.add_argument("--items", nargs="+", metavar="WORD", help="only the items that have one of these words")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    items = [item for item in CHECKS if not chosen.items or any(word in item for word in chosen.items)]
    text = markdown(items, ENTRANTS, table(items, ENTRANTS))
    print(text)
    if not chosen.print and not chosen.items:
        write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
