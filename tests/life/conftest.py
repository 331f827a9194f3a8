"""What the files of tests share that run processes once for all of their tests: `_work` of the file, in PROCESSES."""

from __future__ import annotations

from typing import Any

import pytest

from .processes import Note, Ran, processes


@pytest.fixture(scope="module")
def _ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    notes: list[tuple[str, object]] = []
    work, count = request.module._work, getattr(request.module, "PROCESSES", 2)
    root, seconds = tmp_path_factory.mktemp("ran"), 50 if count == 2 else 150
    return processes(count, work, root, lambda *note: notes.append(note), seconds=seconds), notes


@pytest.fixture
def ranks(_ran: Ran, record_property: Note) -> list[Any]:
    """What `_work` returned, by rank."""
    for note in _ran[1]:
        record_property(*note)
    return _ran[0]
