"""The site: its code runs and prints what it shows, every public name is in it, and no link of it is broken."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import hypothesis
import pytest
import torch

import constraints
import manifolds
from tests import seeds

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
MODULES = (
    "manifolds",
    "manifolds.retractions",
    "manifolds.testing",
    "constraints",
    "constraints.optim",
    "constraints.solve",
)
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


# The code of the pages ------------------------------------------------------------------------------------


def shown(text: str) -> list[str]:
    """The words; numbers where random ones are those of the page."""
    return (re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "0", text) if seeds.shifted() else text).split()


class Shown(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if seeds.shifted():
            want, got = " ".join(shown(want)), " ".join(shown(got))
        return super().check_output(want, got, optionflags)


def run(name: str, text: str, module: ModuleType, capsys: pytest.CaptureFixture[str]) -> int:
    """Run the python blocks in order, each checked against the text block that directly follows it, if one does."""
    count = 0
    for found in BLOCK.finditer(text):
        # leading newlines make the line numbers of a traceback those of the file
        code = "\n" * text[: found.start(1)].count("\n") + found[1]
        exec(compile(code, name, "exec"), vars(module))
        printed = capsys.readouterr().out
        assert found[2] is None or shown(found[2]) == shown(printed)
        count += 1
    return count


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the code of a page is run in, importable: classes of the page are pickled by name."""
    module = ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs_and_prints_what_is_shown(
    path: Path, page: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text()
    assert run(path.name, text, page, capsys) == text.count("```python")


def case(path: Path) -> Any:
    """The page; one that says which libraries it needs is run by `make recipes`, with whatever they warn of."""
    needs = path.read_text().startswith("% needs: ")
    # under three minutes on two cores that are free; one that is not stopped may share them
    marks = [pytest.mark.recipes, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")] if needs else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [case(path) for path in RECIPES])
def test_a_recipe_runs_and_asserts_its_claim(path: Path, page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text()
    assert run(path.name, text, page, capsys) == text.count("```python")
    assert path.stem == "index" or "assert " in text


@pytest.mark.parametrize(
    "text", ["```python\nassert False\n```\n", "```python\nprint('one')\n```\n\n```text\ntwo\n```\n"]
)
def test_a_wrong_page_is_seen(text: str, page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        run("page", text, page, capsys)


# The site -------------------------------------------------------------------------------------------------


class Html(HTMLParser):
    """The places that a page has, and the links that it makes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.ids.add(value)
            elif key in ("href", "src") and value:
                self.links.add(value)


def broken(site: Path) -> list[str]:
    """Links within the site to a file, or to a place in a page, that is not there."""
    pages = {path: Html(path.read_text()) for path in site.rglob("*.html") if "_static" not in path.parts}
    found = []
    for path, html in pages.items():
        for link in html.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not target.exists() or (fragment and target in pages and fragment not in pages[target].ids):
                found.append(f"{path.relative_to(site)} -> {link}")
    return found


def described(site: Path) -> set[str]:
    """The Python objects that have a place in the site, from its inventory."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


def public() -> set[str]:
    names = set()
    for name in MODULES:
        module = importlib.import_module(name)
        offered = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == name
        ]
        names |= {f"{name}.{n}" for n in offered}
    return names


# Described once, where they are defined.
AGAIN = {"constraints.BlockSpec": "manifolds.BlockSpec"} | {
    f"constraints.{name}": f"constraints.solve.{name}"
    for name in set(constraints.__all__) & set(constraints.solve.__all__)
}


@pytest.mark.timeout(600)
def test_the_site_is_built_without_a_warning_and_whole() -> None:
    """With the tutorials as they were last run, or not run at all: `make docs` runs them."""
    site = ROOT / "docs" / "_build" / "check"
    shutil.rmtree(site, ignore_errors=True)  # pages of another time have links of another time
    options = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-D", "plot_gallery=0"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(site)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert broken(site) == []
    assert {AGAIN.get(name, name) for name in public()} - described(site) == set()
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert not any(re.search(r"<p>\|[^<]*\|[-\u2014]{3}", text) for text in pages)  # a table that is none
    assert any("<math" in text for text in pages)
    assert not any("\\(" in text or "MathJax" in text for text in pages if "<math" in text)
    reference = (site / "api" / "manifolds.html").read_text()
    assert "kwargs" not in reference  # options have their names
    assert '<span class="pre">metric</span>' in reference


def test_help_shows_the_options_of_a_manifold() -> None:
    assert list(inspect.signature(manifolds.Stiefel).parameters) == ["metric", "retraction"]
    assert list(inspect.signature(manifolds.Sphere).parameters) == ["radius", "ndim"]
    assert list(inspect.signature(manifolds.Symmetric).parameters) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="b.html#gone"></a><img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="https://example.org/x"></a>')
    assert sorted(broken(tmp_path)) == ["a.html -> b.html#gone", "a.html -> c.png"]


# The examples of the docstrings -----------------------------------------------------------------------------


def examples() -> dict[str, doctest.DocTest]:
    """The examples in the docstring of each public class and function."""
    given: dict[str, Any] = {"torch": torch, "given": hypothesis.given, "Stiefel": manifolds.Stiefel}
    for module in map(importlib.import_module, MODULES):
        given |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    found = {}
    for name in sorted(public()):
        where, _, short = name.rpartition(".")
        value = getattr(importlib.import_module(where), short)
        if inspect.isclass(value) or inspect.isroutine(value):
            found[name] = doctest.DocTestParser().get_doctest(value.__doc__ or "", dict(given), name, None, 0)
    return found


EXAMPLES = examples()


@pytest.mark.every_case
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_public_name_has_an_example_that_runs(name: str) -> None:
    test = EXAMPLES[name]
    assert test.examples
    printed = io.StringIO()
    failed = doctest.DocTestRunner(Shown(), verbose=False).run(test, out=printed.write, clear_globs=False).failed
    for check in [value for key, value in test.globs.items() if key.startswith("test_")]:
        check()
    assert failed == 0, printed.getvalue()
