"""Processes that talk to each other by gloo."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import distributed

from tests.seeds import follow

Note = Callable[[str, object], None]

Ran = tuple[list[Any], list[tuple[str, object]]]
"""What processes returned, by rank, and what is to be noted of it."""

Work = Callable[..., Any]
"""work(rank, *args): what each of them does; what it returns is for the test."""


def two_processes(work: Work, root: Path, note: Note, *args: Any) -> list[Any]:
    return processes(2, work, root, note, *args)


def processes(count: int, work: Work, root: Path, note: Note, *args: Any, seconds: float = 50) -> list[Any]:
    """What work(rank, *args) returned, by rank. A second try is noted: gloo waits for ever at times."""
    folder = root / f"{work.__name__} first"
    if not _ended(count, work, folder, args, seconds):
        note("again", f"{count} gloo processes waited for each other for ever, once")
        folder = root / f"{work.__name__} second"
        assert _ended(count, work, folder, args, seconds), f"{count} processes waited for each other for ever, twice"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _ended(count: int, work: Work, folder: Path, args: tuple[Any, ...], seconds: float) -> bool:
    """Whether all came to an end in time."""
    folder.mkdir()
    every = torch.multiprocessing.spawn(one, (count, work, str(folder), args), nprocs=count, join=False)  # type: ignore[no-untyped-call]
    end = time.monotonic() + seconds
    while not every.join(timeout=1):
        if time.monotonic() > end:
            for process in every.processes:
                process.kill()
            return False
    return True


def one(rank: int, count: int, work: Work, folder: str, args: tuple[Any, ...]) -> None:
    """What one of the processes does; its result is written into the folder."""
    torch.set_num_threads(1)
    follow()
    # a file, for a port that is free may be taken a moment later
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
