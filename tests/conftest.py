"""What every test starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.seeds import shift

# A shared machine is slow now and then, which is no failure; and a run that failed must fail again when repeated.
settings.register_profile("library", deadline=None, derandomize=True)
# With another base seed Hypothesis draws other examples too: those of --hypothesis-seed.
settings.register_profile("other seeds", deadline=None, database=None)

SAMPLE = 12  # cases of one test
GOLDEN = (5**0.5 - 1) / 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-seed", type=int, default=0, help="other random numbers for every test; see `make matrix`")
    parser.addoption("--cases", type=int, default=SAMPLE, help="how many are taken of a test that has more")
    parser.addoption("--every-case", action="store_true", help="all of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with many parameters a sample, one for each base seed, spread over all of them: `make slow` runs all.

    A list goes by one of its parameters after another; steps of the golden section meet every value of each. Tests that
    read the source are quick and marked `every_case`: a name that nobody's turn it was would go unread.
    """
    if config.getoption("--every-case") or any("::" in each for each in config.args):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    seed = config.getoption("--base-seed")
    for group in cases.values():
        ordered = sorted(group, key=lambda item: item.nodeid)
        if group[0].get_closest_marker("every_case"):
            kept.update(group)
            continue
        order = sorted(range(len(ordered)), key=lambda i: (i + seed) * GOLDEN % 1)
        kept.update(ordered[i] for i in order[: config.getoption("--cases")])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_configure(config: pytest.Config) -> None:
    base = config.getoption("--base-seed")
    settings.load_profile("other seeds" if base else "library")
    if base:
        shift(base)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What passed at the second try only, and why: noted by record_property("again", reason)."""
    reports = [each for group in terminalreporter.stats.values() for each in group]
    again = {
        (each.nodeid, text) for each in reports for key, text in getattr(each, "user_properties", ()) if key == "again"
    }
    if again:
        terminalreporter.section("tried again")
        for nodeid, text in sorted(again):
            terminalreporter.write_line(f"{nodeid}: {text}")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """The same random numbers for a test whatever ran before it."""
    torch.manual_seed(0)
