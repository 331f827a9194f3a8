"""Two processes that talk to each other by gloo."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import distributed

Note = Callable[[str, object], None]

Work = Callable[..., Any]
"""work(rank, *args): what each of the two does; what it returns is for the test."""


def two_processes(work: Work, root: Path, note: Note, *args: Any) -> list[Any]:
    """What work(rank, *args) returned, of rank 0 and of rank 1. A second try is noted: gloo waits for ever at times."""
    folder = root / f"{work.__name__} first"
    if not _ended(work, folder, args):
        note("again", "two gloo processes waited for each other for ever, once")
        folder = root / f"{work.__name__} second"
        assert _ended(work, folder, args), "two processes waited for each other for ever, twice"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _ended(work: Work, folder: Path, args: tuple[Any, ...]) -> bool:
    """Whether both came to an end in time."""
    folder.mkdir()
    both = torch.multiprocessing.spawn(_one, (work, str(folder), args), nprocs=2, join=False)  # type: ignore[no-untyped-call]
    end = time.monotonic() + 50
    while not both.join(timeout=1):
        if time.monotonic() > end:
            for process in both.processes:
                process.kill()
            return False
    return True


def _one(rank: int, work: Work, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # a file, for a port that is free may be taken a moment later
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
