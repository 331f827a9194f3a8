"""Processes that talk to each other by gloo."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from tests.seeds import follow

Note = Callable[[str, object], None]

Ran = tuple[list[Any], list[tuple[str, object]]]
"""What processes returned, by rank, and what is to be noted of it."""

LACKS = {
    "'Stream' object has no attribute 'record_event'": "fully_shard of torch 2.6 has no CPU",
    "Invalid scalar type": "gloo of torch 2.6 sends no complex numbers",
}
"""What old versions of torch do not do, by the error that says so."""

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
    try:
        return _joined(count, work, folder, args, seconds)
    except torch.multiprocessing.ProcessRaisedException as error:
        lacks = [why for what, why in LACKS.items() if what in str(error) and torch.__version__ < (2, 7)]
        if lacks:
            pytest.skip(lacks[0])
        raise


def _joined(count: int, work: Work, folder: Path, args: tuple[Any, ...], seconds: float) -> bool:
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
