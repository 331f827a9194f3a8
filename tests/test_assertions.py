"""Every test asserts something: a test that cannot fail is a defect."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.every_case
HERE = Path(__file__).parent
FILES = sorted(file.relative_to(HERE).as_posix() for file in HERE.rglob("test_*.py"))
# Calls that assert: of pytest, torch, numpy, hypothesis.find, run(check=True), this library
ASSERTS = ("raises", "warns", "fail", "check", "gradcheck", "gradgradcheck", "assert", "find")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def called(node: ast.AST) -> Iterator[str]:
    """The last part of the name of every function that is called, or handed on by name."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.keyword) and each.arg == "check":
            yield "check"


def asserts(function: ast.AST, functions: dict[str, ast.AST], seen: frozenset[str] = frozenset()) -> bool:
    """Whether it asserts by itself, or by a function of its file that does."""
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    names = set(called(function))
    if any(name.strip("_").startswith(ASSERTS) for name in names):
        return True
    return any(asserts(functions[n], functions, seen | {n}) for n in names & functions.keys() - seen)


def without_assertion(source: str) -> list[str]:
    tree = ast.parse(source)
    functions: dict[str, ast.AST] = {
        node.name: node for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef)
    }
    return [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, Function)
        and node.name.startswith("test_")
        and not asserts(node, functions, frozenset({node.name}))
    ]


@pytest.mark.parametrize("file", FILES)
def test_every_test_asserts(file: str) -> None:
    assert without_assertion((HERE / file).read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def test_a():\n    f()", 1),
        ("class TestA:\n    def test_a(self):\n        f()", 1),
        ("def f():\n    assert 1\ndef test_a():\n    f()", 0),
        ("def f():\n    test_a()\ndef test_a():\n    f()", 1),
        ("def test_a():\n    with pytest.raises(ValueError):\n        f()", 0),
        ("def test_a():\n    torch.testing.assert_close(1, 1)", 0),
    ],
)
def test_the_check_sees(source: str, found: int) -> None:
    assert len(without_assertion(source)) == found
