"""From the plain text of the docstrings to reStructuredText: formulas, names, options, sources.

The docstrings are written for a terminal: `name` is code, X^H and T_x are formulas, "name: text" at the start of a
line explains an option, "Source: " names the literature.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import inspect as sphinx_inspect

from manifolds.base import ManifoldMeta

MODULES = (
    "manifolds",
    "manifolds.retractions",
    "manifolds.testing",
    "constraints.solve",
    "constraints",
    "constraints.optim",
)  # a name means what the first of them has by it
OPTION = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")


def _targets() -> dict[str, str]:
    """What a name in backticks may mean: public names, and the methods of the contract."""
    found: dict[str, str] = {}
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", ()):
            found.setdefault(name, f"{module.__name__}.{name}")
    manifold = importlib.import_module("manifolds").Manifold
    methods = {name: f"manifolds.Manifold.{name}" for name in vars(manifold) if name[0] != "_"}
    found.update(methods | {f"Manifold.{name}": target for name, target in methods.items()})
    found["RiemannianOptimizer"] = "constraints.optim.step.RiemannianOptimizer"
    for name in ("cayley", "exp", "polar", "qr"):
        found[f"retractions.{name}"] = found[name] = f"manifolds.retractions.{name}"
    return found


TARGETS: dict[str, str] = {}


def code(span: str) -> str:
    """A name in backticks: a link where it is public, else plain code."""
    name = span.removesuffix("()")
    return f":py:obj:`{span} <{TARGETS[name]}>`" if name in TARGETS else f"``{span}``"


def escape(text: str) -> str:
    return re.sub(r"([\\*|_`<>])", r"\\\1", text)


def formulas(text: str) -> str:
    """Raised and lowered letters in plain text, the rest escaped."""
    text = text.replace("->", "\u2192").replace("<-", "\u2190")
    text = text.replace(" ... ", " \u2026 ")  # no end of a sentence, as tables of summaries take it for
    text = re.sub(r"\b([mv])\^(?![\w(-])", "\\1\u0302", text)
    pattern = r"\^(?P<up>\([^()]*\)|-?\w+(?:/\d)?)|(?<=\b[A-Za-z])_(?P<low>\w{1,2})\b|(?<=\bphi)_(?P<low2>i)\b"
    parts, end = [], 0
    for match in re.finditer(pattern, text):
        role = "sup" if match["up"] else "sub"
        raised = (match["up"] or match["low"] or match["low2"]).replace("-", "\u2212")
        parts += [escape(text[end : match.start()]), rf"\ :{role}:`{escape(raised)}`\ "]
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def rich(text: str) -> str:
    """One paragraph of a docstring as reStructuredText."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(rf"\ {code(p[1:-1])}\ " if p[:1] == "`" and len(p) > 2 else formulas(p) for p in pieces)


def paragraph(lines: list[str], parameters: set[str]) -> list[str]:
    """The lines of one paragraph, with its options as a field list and its source set apart."""
    blocks: list[tuple[str, list[str]]] = []
    # an option may also begin after a full stop
    starts = "|".join(map(re.escape, parameters)) or "$^"
    for line in itertools.chain(*(re.split(rf"(?<=\.) (?=(?:{starts}): )", whole) for whole in lines)):
        option = OPTION.match(line)
        if option and all(name in parameters for name in option[1].split(", ")):
            blocks.append((option[1], [option[2]]))
        elif line.startswith(("Source: ", "Raises ")):
            blocks.append((line[:6], [line]))
        elif blocks:
            blocks[-1][1].append(line)
        else:
            blocks.append(("", [line]))
    out: list[str] = []
    for kind, text in blocks:
        joined = rich(" ".join(text))
        if kind in ("", "Raises"):
            out += ["", joined, ""]
        elif kind == "Source":
            out += ["", ".. container:: source", "", f"   {joined}", ""]
        else:
            out.append(f":param {kind}: {joined}")
    return [*out, ""]


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if not TARGETS:
        TARGETS.update(_targets())
    try:
        parameters = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        parameters = set()
    if isinstance(obj, type):
        parameters |= {key for base in obj.__mro__ for key in inspect.get_annotations(base)}
    out: list[str] = []
    chunk: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            chunk.append(line.strip() if not chunk or not chunk[0].startswith(">>>") else line)
        elif chunk:
            out += [*chunk, ""] if chunk[0].startswith(">>>") else paragraph(chunk, parameters)
            chunk = []
    lines[:] = out


SHORT = (
    (re.compile(r"~?jaxtyping\.(?:Inexact|Float|Bool)\[Tensor, (?:'[^']*'|\"[^\"]*\")\]"), "~torch.Tensor"),
    (re.compile(r"~typing\.Literal\['haar', 'identity', 'torus'\]"), "str"),
    (re.compile(r"~collections\.abc\.Callable\[\[[^\]]*\], [^\]]*\]"), "~collections.abc.Callable"),
    (re.compile(r" \| type\[~?manifolds\.base\.Manifold\]"), ""),
    (re.compile(r"<function (\w+)>"), r"\1"),
)
"""Shapes and the types of functions are said by the text, not by each argument; retraction=polar, not its repr."""


def short_signature(
    app: Sphinx, what: str, name: str, obj: Any, settings: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """On one line where it fits: the options of a manifold with their types, and short names of types everywhere."""
    if isinstance(obj, ManifoldMeta):
        options = sphinx_inspect.signature(obj.__init__, bound_method=True)  # type: ignore[misc]
        shown = sphinx_inspect.stringify_signature(options, show_return_annotation=False, unqualified_typehints=True)
        signature = "" if inspect.isabstract(obj) else shown
    return None if signature is None else (shortened(signature), returns and shortened(returns))


def shortened(text: str) -> str:
    for pattern, name in SHORT:
        text = pattern.sub(name, text)
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
