"""Every public name says what it computes, on what shapes, and when it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from torch import Tensor

from manifolds import Manifold

pytestmark = pytest.mark.every_case
MODULES = (
    "manifolds",
    "manifolds.retractions",
    "manifolds.testing",
    "constraints",
    "constraints.optim",
    "constraints.solve",
)
SHAPES = ("(..., ", "axis", "packed tensor")


def public(module: ModuleType) -> dict[str, Any]:
    """Classes and functions that the module offers: those in __all__, or without one those that it defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == module.__name__
        ]
    values = {name: getattr(module, name) for name in names}
    return {f"{module.__name__}.{n}": v for n, v in values.items() if inspect.isclass(v) or inspect.isroutine(v)}


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself writes."""
    for name, value in vars(owner).items():
        function = inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))
        if name[0] != "_" and inspect.isfunction(function):
            yield name, function


def documentation(owner: type | None, name: str, value: Any) -> str:
    """The docstring; that of the contract for a method that keeps it."""
    own = inspect.getdoc(value)
    return own or (inspect.getdoc(getattr(owner, name)) if owner else "") or ""


def raises(function: Callable[..., Any]) -> bool:
    """Whether the function, or a private helper of its module that it calls, has a raise statement."""
    module = inspect.getmodule(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("_"):
            helper = getattr(module, node.func.id, None)
            if inspect.isfunction(helper) and helper is not function and raises(helper):
                return True
    return False


MODULE = {name: importlib.import_module(name) for name in MODULES}
NAMES = {name: value for module in MODULE.values() for name, value in public(module).items()}
CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}
METHODS = {f"{name}.{m}": (owner, m, f) for name, owner in CLASSES.items() for m, f in members(owner)}
MANIFOLDS = {n: v for n, v in CLASSES.items() if issubclass(v, Manifold) and not inspect.isabstract(v)}
# Blocks of a packed tensor have any number of axes: there is no shape to write.
TYPED = set(MANIFOLDS) - {"manifolds.ProductManifold"}
RETRACTIONS = {f"manifolds.retractions.{n}" for n in ("cayley", "exp", "polar", "qr")}
# The line needs none.
SOURCED = sorted((set(MANIFOLDS) - {"manifolds.Euclidean"}) | RETRACTIONS | {n for n in NAMES if ".optim." in n})
FUNCTIONS = METHODS | {name: (None, name, value) for name, value in NAMES.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    assert inspect.getdoc(MODULE[name])
    assert public(MODULE[name])


@pytest.mark.parametrize("name", NAMES)
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    own = vars(NAMES[name]).get("__doc__") if inspect.isclass(NAMES[name]) else NAMES[name].__doc__
    # a dataclass without a docstring gets its signature for one
    assert own
    assert not own.startswith(f"{NAMES[name].__name__}(")


@pytest.mark.parametrize("name", METHODS)
def test_public_method_has_a_docstring(name: str) -> None:
    owner, method, function = METHODS[name]
    assert documentation(owner, method, function)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_manifold_says_its_shapes(name: str) -> None:
    text = inspect.getdoc(MANIFOLDS[name]) or ""
    assert any(word in text for word in SHAPES)


@pytest.mark.parametrize("name", [name for name in METHODS if name.rpartition(".")[0] in TYPED])
def test_tensors_of_a_manifold_are_annotated_with_their_shapes(name: str) -> None:
    hints = get_type_hints(METHODS[name][2])
    assert [argument for argument, hint in hints.items() if hint is Tensor] == []


@pytest.mark.parametrize("name", SOURCED)
def test_mathematics_from_the_literature_names_its_source(name: str) -> None:
    assert "Source:" in (inspect.getdoc(NAMES[name]) or "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_raises_says_so(name: str) -> None:
    owner, method, function = FUNCTIONS[name]
    text = documentation(owner, method, function) + (inspect.getdoc(owner) or "" if owner else "")
    assert not raises(function) or "rais" in text.lower()


def _refuse() -> None:
    raise ValueError


def test_a_raise_is_seen_at_any_depth_and_only_there() -> None:
    def direct(x: int) -> int:
        if x:
            raise ValueError
        return x

    def through_a_helper() -> None:
        _refuse()

    assert raises(direct)
    assert raises(through_a_helper)
    assert not raises(documentation)
