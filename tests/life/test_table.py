"""The table of docs/lifecycle.md: our columns are what the checks say today, and the checks can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.lifecycle.__main__ import BEGIN, END, PAGE, markdown, verdict, write
from benchmarks.lifecycle.checks import CHECKS
from benchmarks.lifecycle.entrants import ENTRANTS, Entrant

OURS = ENTRANTS[:2]


def shown() -> dict[str, list[str]]:
    """The rows of the page."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.strip().splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_page_has_every_check_in_order() -> None:
    assert list(shown()) == list(CHECKS)
    assert {len(cells) for cells in shown().values()} == {len(ENTRANTS)}


@pytest.mark.parametrize("item", [item for item in CHECKS if "processes" not in item])
@pytest.mark.parametrize("number", range(len(OURS)), ids=[each.name for each in OURS])
def test_our_cells_are_true(item: str, number: int) -> None:
    found = verdict(item, OURS[number])
    assert found == shown()[item][number]
    assert "silently wrong" not in found


class Nothing(Entrant):
    """Holds nothing, and loses the weight when it lets go."""

    name = "nothing"

    def hold(self, net: nn.Module, name: str) -> None: ...

    def release(self, net: Any) -> None:
        nn.init.zeros_(net.first.weight)

    def rebase(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None: ...


# what needs no constraint to go well
FREE = {
    "`state_dict`, strict, into the same model",
    "`parametrize.cached()`",
    "`functional_call` and `torch.func.grad`",
    "`vmap` over an ensemble",
    "second derivatives",
    "gradients accumulate",
    "`clip_grad_norm_` bounds the step",
    "a run resumed from files is the run, bit for bit",
    "two layers with one weight",
    "a GRU computes its weight once per pass, train and eval",
    "`copy.deepcopy` of a GRU after a forward pass",
}


@pytest.mark.parametrize("item", [item for item in CHECKS if "processes" not in item and item not in FREE])
def test_a_library_that_holds_nothing_is_found_out(item: str) -> None:
    assert verdict(item, Nothing()) != "works"


def test_the_table_is_written_between_the_markers(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(markdown(["one"], OURS, [["works", "works"]]), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| one | works | works |" in text
