"""Every tutorial is a page with a question and an answer, and runs to the end, where it asserts the answer."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
SLOW = {"01_orthogonal_gru", "02_copying_problem"}


def asserts(statement: ast.stmt) -> bool:
    """Whether it is an assertion, or a loop that ends with one."""
    return isinstance(statement, ast.Assert) or (isinstance(statement, ast.For) and asserts(statement.body[-1]))


def faults(source: str) -> list[str]:
    """What is missing for the page that is rendered from it, and for the promise that it makes."""
    module = ast.parse(source)
    text = ast.get_docstring(module) or ""
    title, underline, *_ = [*text.splitlines(), "", ""]
    wanted = {
        "a title, underlined": bool(title) and underline == "=" * len(title),
        "a question": re.search(r"^Question: .*\?", text, re.MULTILINE | re.DOTALL) is not None,
        "an answer": re.search(r"^Answer: ", text, re.MULTILINE) is not None,
        "text between the code": re.search(r"^# %%\n# \w", source, re.MULTILINE) is not None,
        "a seed": "torch.manual_seed(" in source,
        "progress": "tqdm(" in source,
        "an assertion at its end": asserts(module.body[-1]),
    }
    return [what for what, found in wanted.items() if not found]


def run(file: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, warnings as errors, without a display."""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(file)]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_each_has_a_number_of_its_own() -> None:
    numbers = [file.stem[:2] for file in TUTORIALS]
    assert numbers[:7] == [f"{i:02}" for i in range(1, 8)]
    assert len(set(numbers)) == len(numbers)
    assert {file.stem for file in TUTORIALS} > SLOW


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_a_tutorial_asks_and_answers(file: Path) -> None:
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("=\n", "==\n", "a title, underlined"),
        ("Question: ", "", "a question"),
        ("Answer: ", "", "an answer"),
        ("# %%\n", "", "text between the code"),
        ("torch.manual_seed(", "print(", "a seed"),
        ("tqdm(", "list(", "progress"),
        ("assert ", "print", "an assertion at its end"),
    ],
)
def test_a_missing_part_is_seen(old: str, new: str, fault: str) -> None:
    assert faults(TUTORIALS[-1].read_text().replace(old, new)) == [fault]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(
            file, id=file.stem, marks=[pytest.mark.slow, pytest.mark.timeout(900)] if file.stem in SLOW else []
        )
        for file in TUTORIALS
    ],
)
def test_a_tutorial_finds_its_answer(file: Path, tmp_path: Path) -> None:
    done = run(file, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


@pytest.mark.parametrize("source", ["assert 1 + 1 == 3", "import warnings\nwarnings.warn('deprecated')"])
def test_a_tutorial_that_fails_is_seen(source: str, tmp_path: Path) -> None:
    file = tmp_path / "tutorial.py"
    file.write_text(source)
    assert run(file, tmp_path).returncode != 0
