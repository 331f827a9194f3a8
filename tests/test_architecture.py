"""torch <- manifolds <- constraints <- tutorials, benchmarks, tests, and kernels <- retractions <- families inside
manifolds: who may import whom; and how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.every_case
ROOT = Path(__file__).parent.parent

# Beside the standard library. Whatever is not listed is refused: what comes later in the rule, and what no user has.
MAY_IMPORT = {
    "manifolds": {"torch", "jaxtyping", "manifolds"},
    "constraints": {"torch", "jaxtyping", "manifolds", "constraints"},
}
# The extra `testing`, which only who tests a manifold installs; and drawing, which says what it needs.
MAY_ALSO = {"manifolds/testing/": {"hypothesis"}, "constraints/solve/figures.py": {"matplotlib"}}
# Geometry is tensors in, tensors out.
NOT_IN_GEOMETRY = ("torch.nn", "torch.optim")
# An option of constrain, which a call of geometry has not: the way out there is another.
NOT_SAID_IN_GEOMETRY = "init="
# Inside manifolds: what a file may import of it, if not all.
MAY_IMPORT_INSIDE = {
    "manifolds/kernels/": ("manifolds.kernels",),
    "manifolds/retractions.py": ("manifolds.kernels",),
    "manifolds/_points.py": ("manifolds.kernels",),
}
# What is held, the watch over optimizers, the method: records <- watch <- riemannian.
MAY_NOT_IMPORT = {
    "constraints/records.py": ("constraints.watch", "constraints.riemannian"),
    "constraints/watch.py": ("constraints.riemannian",),
}


def sources() -> list[Path]:
    return sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))


def names(source: str) -> Iterator[str]:
    """Every module that the source imports and every dotted name that it writes, as `torch.nn.Module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def texts(source: str) -> Iterator[str]:
    """Every text in the source, docstrings too, but for what is not written as one in f"{...}"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def imports(source: str) -> Iterator[str]:
    """The top-level package of every absolute import, at whatever depth of the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def inside(file: str, source: str) -> Iterator[str]:
    """Every module or name of ours that the source of this file imports, as `manifolds.base.Manifold`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            package = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *filter(None, [node.module])])
            yield from (name for a in node.names if (name := f"{module}.{a.name}").split(".")[0] in MAY_IMPORT)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MAY_IMPORT)


def violations(file: str, source: str) -> list[str]:
    package = file.split("/")[0]
    also = {name for place, names in MAY_ALSO.items() if file.startswith(place) for name in names}
    allowed = MAY_IMPORT[package] | also | sys.stdlib_module_names
    found = [f"{file} imports {name}" for name in imports(source) if name not in allowed]
    if package == "manifolds":
        found += [
            f"{file} uses {n}" for n in names(source) if (n + ".").startswith(tuple(m + "." for m in NOT_IN_GEOMETRY))
        ]
        found += [f"{file} says {NOT_SAID_IN_GEOMETRY}"] * any(NOT_SAID_IN_GEOMETRY in text for text in texts(source))
        for place, allowed_inside in MAY_IMPORT_INSIDE.items():
            if file.startswith(place):
                prefixes = tuple(f"{name}." for name in allowed_inside)
                found += [f"{file} imports {n}" for n in inside(file, source) if not (n + ".").startswith(prefixes)]
    later = tuple(f"{name}." for name in MAY_NOT_IMPORT.get(file, ()))
    return found + [f"{file} imports {n}" for n in inside(file, source) if later and (n + ".").startswith(later)]


def test_no_source_has_more_than_300_lines() -> None:
    places = [*MAY_IMPORT, "benchmarks", "tutorials", "docs/_ext"]
    lengths = {f: len(f.read_text().splitlines()) for place in places for f in (ROOT / place).rglob("*.py")}
    assert len(lengths) > 200
    assert {file.relative_to(ROOT).as_posix(): n for file, n in lengths.items() if n > 300} == {}


def test_both_packages_are_looked_at() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in sources()} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", [file.relative_to(ROOT).as_posix() for file in sources()])
def test_imports_go_one_way(file: str) -> None:
    assert violations(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("manifolds/new.py", "import constraints"),
        ("manifolds/new.py", "def f():\n    from constraints.report import report"),
        ("manifolds/new.py", "from torch import nn"),
        ("manifolds/new.py", "import torch.nn.functional as F"),
        ("manifolds/new.py", "import torch\ndef f(m: torch.nn.Module): ..."),
        ("manifolds/new.py", "from torch.optim import Adam"),
        ("manifolds/new.py", "import scipy.linalg"),
        ("manifolds/new.py", "def f(x):\n    raise ValueError(f\"{x} is zero. Start with init='haar'.\")"),
        ("manifolds/new.py", "import hypothesis"),
        ("manifolds/kernels/new.py", "from ..base import Manifold"),
        ("manifolds/kernels/new.py", "from .. import retractions"),
        ("manifolds/kernels/new.py", "def f():\n    from ..retractions import polar"),
        ("manifolds/kernels/new.py", "import manifolds"),
        ("manifolds/kernels/new.py", "from manifolds import Stiefel"),
        ("manifolds/retractions.py", "from .stiefel import Stiefel"),
        ("manifolds/retractions.py", "from .base import Manifold"),
        ("constraints/records.py", "from . import watch"),
        ("constraints/watch.py", "from .riemannian import Riemannian"),
        ("constraints/new.py", "import geotorch"),
        ("constraints/optim/new.py", "from geoopt import Stiefel"),
        ("constraints/new.py", "from tests.conftest import settings"),
        ("constraints/new.py", "import benchmarks.table"),
    ],
)
def test_a_violation_is_seen(file: str, source: str) -> None:
    assert violations(file, source) != []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("manifolds/new.py", "import math\nimport torch\nfrom .base import Manifold\ntorch.linalg.qr"),
        ("manifolds/testing/new.py", "from hypothesis import strategies"),
        (
            "manifolds/kernels/new.py",
            "from .linalg import skew\nfrom . import tiny\nfrom manifolds.kernels import cayley",
        ),
        ("manifolds/retractions.py", "from .kernels.linalg import skew\nfrom .kernels import cayley"),
        ("manifolds/new.py", "from .kernels.linalg import skew\nfrom .retractions import polar"),
        ("constraints/new.py", "from torch import nn\nfrom manifolds import Stiefel\nfrom .report import report"),
    ],
)
def test_what_the_rule_allows_is_allowed(file: str, source: str) -> None:
    assert violations(file, source) == []
