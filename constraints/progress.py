"""A line on the terminal while many or large tensors find their nearest points; nothing in logs and files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

PATIENCE = 1.0  # seconds without a sign of life
LARGE = 1024**2  # entries from which on a matrix may take as long as that alone

T = TypeVar("T")


class Terminal(Protocol):
    def isatty(self) -> bool: ...
    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


def shown(names: Iterable[tuple[str, int, T]], total: int, to: Terminal | None = None) -> Iterator[T]:
    """The values of (name, number of entries, value), each named on stderr before it is given, where it is a terminal,
    a second has passed or the tensor is large. The line is wiped at the end."""
    stream = sys.stderr if to is None else to
    start, written = time.monotonic(), 0
    talks = stream is not None and stream.isatty()
    try:
        for i, (name, entries, value) in enumerate(names):
            if talks and (entries >= LARGE or time.monotonic() - start > PATIENCE):
                line = f"constrain: {i + 1} of {total}, {name}"[:79]
                stream.write("\r" + line.ljust(written))
                stream.flush()
                written = len(line)
            yield value
    finally:
        if written:
            stream.write("\r" + " " * written + "\r")
            stream.flush()
