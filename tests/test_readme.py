"""What the README says is so: its code runs, in order, and prints what it shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Euclidean, Manifold, Stiefel
from manifolds.testing import check_manifold

README = Path(__file__).parent.parent / "README.md"


class Block(NamedTuple):
    line: int
    code: str
    output: str | None


def blocks(text: str) -> list[Block]:
    """The python blocks, each with the text block that directly follows it, if one does."""
    found = re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.MULTILINE | re.DOTALL)
    return [Block(text[: m.start(1)].count("\n"), m[1], m[2]) for m in found]


def run(text: str, module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(text):
        # leading newlines make the line numbers of a traceback those of the file
        exec(compile("\n" * block.line + block.code, README.name, "exec"), vars(module))
        printed = capsys.readouterr().out
        assert block.output is None or block.output.split() == printed.split()


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the code of the page is run in, importable: classes of the page are pickled by name."""
    module = ModuleType("readme_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_every_block_runs_in_order_and_prints_what_is_shown(
    page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text()
    assert len(blocks(text)) == text.count("```python") > 5
    run(text, page, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
    ],
)
def test_a_wrong_page_is_seen(text: str, page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        run(text, page, capsys)


def oblique(page: ModuleType) -> type[Manifold]:
    """The manifold that the page adds."""
    (example,) = [block for block in blocks(README.read_text()) if "(NearestPointManifold)" in block.code]
    assert len(example.code.splitlines()) < 40
    exec(example.code, vars(page))
    manifold: type[Manifold] = vars(page)["Oblique"]
    return manifold


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 5, 2)])
def test_the_manifold_of_the_page_keeps_the_contract(shape: tuple[int, ...], page: ModuleType) -> None:
    check_manifold(oblique(page), shape)


# One base reaches only the half of a sphere around it.
@pytest.mark.parametrize(("optimizer", "lr", "decay"), [(RiemannianAdam, 0.5, 0.985), (RiemannianSGD, 0.05, 1.0)])
@pytest.mark.parametrize("method", [Trivialization(rebase_every=20), Riemannian()], ids=str)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a product"])
def test_the_manifold_of_the_page_is_trained(
    alone: bool,
    method: Trivialization | Riemannian,
    optimizer: type[RiemannianAdam | RiemannianSGD],
    lr: float,
    decay: float,
    page: ModuleType,
) -> None:
    """The nearest matrix with unit columns to a given one, whose columns they are divided by their norms."""
    one, target = oblique(page), torch.randn(12, 5)
    manifold = one() if alone else Stiefel * one * Euclidean
    linear = constrain(torch.nn.Linear(5, 12), "weight", manifold, method, init="haar")
    opt = optimizer(linear, lr=lr)
    for _ in range(400):
        opt.zero_grad()
        (linear.weight - target).square().sum().backward()
        opt.step()
        for group in opt.param_groups:
            group["lr"] *= decay
    rows = slice(0, 12) if alone else slice(4, 8)
    best = target[rows] / target[rows].norm(dim=0)
    assert (linear.weight[rows] - best).abs().max() < 1e-3
    assert (linear.weight[rows].norm(dim=0) - 1).abs().max() < 1e-5


def test_files_that_the_page_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def cells(page: Path) -> dict[str, list[str]]:
    """The first cell of each table row of the page, and the others up to a colon."""
    rows = [line.strip("|").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.partition(":")[0].strip() for cell in rest] for first, *rest in rows}


def test_the_comparison_with_others_is_that_of_the_checks() -> None:
    mine, measured = cells(README), cells(README.parent / "docs" / "lifecycle.md")
    shared = [row for row in mine if row in measured and row]
    assert len(shared) == 12
    assert [row for row in shared if mine[row] != measured[row]] == []


def test_the_speeds_are_those_of_the_last_run() -> None:
    from benchmarks import report

    found = json.loads((README.parent / "docs" / "benchmarks.json").read_text())
    assert report.readme(found) in README.read_text()
