"""The tables of docs/coming-from.md: every row runs on both sides, and both sides do the same."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import constraints
import constraints.optim
import constraints.solve
import manifolds
from constraints import report
from manifolds import (
    Composition,
    Hyperboloid,
    Manifold,
    Oblique,
    PoincareBall,
    PositiveDefinite,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

PAGE = Path(__file__).parent.parent / "docs" / "coming-from.md"
CODE = re.compile(r"`([^`]+)`")
# of the other libraries
pytestmark = pytest.mark.filterwarnings("ignore")

HOLDERS = ("layer", "square", "gru")


class Row(NamedTuple):
    peer: str
    to: str
    theirs: str
    ours: str


class Reason(NamedTuple):
    """Why names of a library have no row."""

    peer: str
    names: list[str]
    why: str


def sections(text: str) -> list[tuple[str, str]]:
    """(first word of the heading, text) of every section."""
    return [(re.split(r"\W", each)[0], each) for each in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]


def reasons(text: str) -> list[Reason]:
    """The rows of the tables of two columns."""
    lines = [(peer, line.strip("|").split(" | ")) for peer, each in sections(text) for line in each.splitlines()]
    return [
        Reason(peer, CODE.findall(cells[0]), cells[1]) for peer, cells in lines if len(cells) == 2 and "`" in cells[0]
    ]


def rows(text: str) -> list[Row]:
    """The rows of all tables, under the first word of their heading; code of a cell one statement a line.

    A table headed "then, to" goes on from the first row of its section.
    """
    found: list[Row] = []
    for peer, section in sections(text):
        first: Row | None = None
        goes_on = False
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if line.startswith("|") and len(cells) == 3 and "`" in cells[2]:
                row = Row(peer, cells[0], *("\n".join(CODE.findall(cell)) for cell in cells[1:]))
                first = first or row
                if goes_on:
                    row = row._replace(theirs=f"{first.theirs}\n{row.theirs}", ours=f"{first.ours}\n{row.ours}")
                found.append(row)
            elif line.startswith("|") and len(cells) == 3:
                goes_on = cells[0] == "then, to"
    return found


ROWS = rows(PAGE.read_text())
REASONS = reasons(PAGE.read_text())


def names(peer: str) -> dict[str, Any]:
    """What the page says that the code of a row may use, in float64; the same at every call."""
    torch.manual_seed(0)
    stiefel, f64 = Stiefel(), torch.float64
    x, y = stiefel.random(20, 8, dtype=f64), stiefel.random(20, 8, dtype=f64)
    a, g = torch.randn(20, 8, dtype=f64), torch.randn(20, 8, dtype=f64)
    s = Sphere().random(6, dtype=f64)
    found: dict[str, Any] = {"torch": torch, "nn": nn, "parametrizations": parametrizations, "parametrize": parametrize}
    found |= {"layer": nn.Linear(8, 20).double(), "square": nn.Linear(8, 8).double(), "gru": nn.GRU(5, 8).double()}
    cone = PositiveDefinite()
    found |= {"c": cone.random(8, 8, dtype=f64), "d": cone.random(8, 8, dtype=f64)}
    found |= {"h": 0.3 * cone.project(found["c"], torch.randn(8, 8, dtype=f64))}
    found |= {"x": x, "y": y, "u": stiefel.project(x, g), "v": stiefel.project(x, a), "a": a, "g": g}
    found |= {"s": s, "t": Sphere().project(s, torch.randn(6, dtype=f64))}
    found |= {"o": Oblique().random(20, 8, dtype=f64), "w": Oblique().random(20, 8, dtype=f64)}
    found |= {"m": torch.randn(8, 8, dtype=f64)}
    found |= dict(zip("qr", SpecialOrthogonal().random(2, 8, 8, dtype=f64), strict=True))
    for pair, hyperbolic in (("kl", PoincareBall()), ("ef", Hyperboloid())):
        found |= dict(zip(pair, hyperbolic.random(2, 6, dtype=f64), strict=True))
    found |= {"j": torch.linalg.svd(x)[0][:, 8:]}
    found |= dict(zip("zb", Sphere().random(2, 6, 1, dtype=torch.complex128).squeeze(-1), strict=True))
    for module in (manifolds, constraints, constraints.optim, constraints.solve):
        found |= {name: getattr(module, name) for name in module.__all__}
    if peer == "pymanopt":
        found["pymanopt"] = importlib.import_module("pymanopt")
    elif peer == "POGO":
        pogo = pytest.importorskip("pogo", reason="needs Python 3.11")
        found |= {"POGO": pogo.POGO, "base": importlib.import_module("pogo.base")}
    elif peer not in ("torch", "SGDG"):
        found[peer] = importlib.import_module(peer)
    return found


def run(code: str, given: dict[str, Any]) -> Any:
    """Run the code in these names; the value of its last line if that is an expression."""
    tree = ast.parse(code)
    last = tree.body[-1]
    exec(compile(ast.Module(tree.body[:-1], []), "<row>", "exec"), given)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<row>", "eval"), given)
    exec(compile(ast.Module([last], []), "<row>", "exec"), given)
    return None


def as_tensor(value: Any) -> Tensor:
    return torch.as_tensor(value).detach()


def held(given: dict[str, Any]) -> list[tuple[str, str, Manifold | Composition]]:
    """(module, name, manifold) of what the modules of the row hold, or its optimizer on its own."""
    if "p" in given:
        return [("layer", "weight", group["manifold"]) for group in given["optimizer"].param_groups]
    records = [(holder, record) for holder in HOLDERS for record in report(given[holder])]
    # the parts of a composed weight have dotted names
    return [(holder, each.name, each.manifold) for holder, each in records if "." not in each.name]


def weight(given: dict[str, Any], holder: str, name: str) -> Tensor:
    """The tensor that a side holds: its own Parameter p, or that of the module."""
    p: Tensor = given["p"] if "p" in given else getattr(given[holder], name)
    return p


def step(given: dict[str, Any], holder: str, name: str) -> None:
    if "optimizer" in given:
        p = weight(given, holder, name)
        (p * given["a"].flatten()[: p.numel()].reshape(p.shape)).sum().backward()
        given["optimizer"].step()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.peer}: {row.to}")
def test_a_row_does_the_same_on_both_sides(row: Row) -> None:
    theirs, ours = names(row.peer), names("torch")
    if row.peer == "pymanopt":
        theirs |= {key: theirs[key].numpy() for key in "xyuvagstowmcdhqrklefjzb"}
    runs = bool(row.theirs) and row.peer != "SGDG" and not row.to.startswith("use another")  # copies, and prose
    value = run(row.theirs, theirs) if runs else None
    mine = run(row.ours, ours)

    constrained = held(ours)
    for holder, name, manifold in constrained:
        for side, allowed in ((ours, 1e-10), (theirs, 1e-4)):
            if side is ours or runs:
                step(side, holder, name)
                point = weight(side, holder, name).detach()
                assert manifold.residual(point.reshape(getattr(ours[holder], name).shape)).max() < allowed
                assert weight(side, holder, name).requires_grad != ("requires_grad_" in row.ours)
    if constrained:
        return
    if "unconstrain" in row.ours:
        for side in (theirs, ours):
            assert type(side["layer"].weight) is nn.Parameter
        return
    value, mine = as_tensor(value), as_tensor(mine)
    assert value.shape == mine.shape
    if ".random(" in row.ours:
        drawn_from = run(row.ours.rpartition(".random(")[0], names("torch"))
        for point in (value, mine):
            assert drawn_from.residual(point).max() < 1e-4  # as of those that iterate to 1e-5
    else:
        torch.testing.assert_close(mine, value, check_dtype=False, rtol=1e-6, atol=1e-8)


def test_every_library_of_the_page_has_rows() -> None:
    text = PAGE.read_text()
    assert {row.peer for row in ROWS} == {"torch", "geotorch", "geoopt", "pymanopt", "POGO", "SGDG"}
    # nothing that looks like a row is left out: all lines, less a head and a rule for each table
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(ROWS) + len(REASONS) == len(lines) - 2 * sum(line.startswith("|---") for line in lines)


def classes(module: str) -> set[str]:
    """The public classes of a module."""
    found = vars(importlib.import_module(module)).items()
    return {name for name, value in found if isinstance(value, type) and not name.startswith("_")}


def public(peer: str) -> set[str]:
    """The names of what a library holds tensors on, by and with."""
    if peer == "torch":
        return set(parametrizations.__all__)
    if peer == "geotorch":
        return set(importlib.import_module(peer).__all__)
    if peer == "geoopt":
        return classes("geoopt.manifolds") | classes("geoopt.optim") | classes("geoopt.samplers")
    return set().union(*(importlib.import_module(f"pymanopt.{part}").__all__ for part in ("manifolds", "optimizers")))


def named(peer: str) -> set[str]:
    """The names of a library that have a row: an attribute in its code, or what the row says it is."""
    mine = [row for row in ROWS if row.peer == peer]
    return {name for row in mine for name in (*re.findall(r"\.([A-Za-z]\w*)\(", row.theirs), *CODE.findall(row.to))}


@pytest.mark.parametrize("peer", ["torch", "geotorch", "geoopt", "pymanopt"])
def test_every_name_of_a_library_has_a_row_or_a_reason(peer: str) -> None:
    excused = [name for reason in REASONS if reason.peer == peer for name in reason.names]
    names, run = public(peer), named(peer)
    assert names - run - set(excused) == set(), "neither a row nor a reason"
    assert set(excused) <= names - run, "a reason for what is not theirs, or has a row"
    assert len(excused) == len(set(excused))


@pytest.mark.parametrize("row", [r for r in ROWS if r.peer == "geotorch"], ids=lambda row: row.to)
def test_the_class_that_a_row_of_geotorch_names_is_the_one_that_it_holds(row: Row) -> None:
    given = names("geotorch")
    run(row.theirs, given)
    held = {
        type(each).__name__
        for holder in HOLDERS
        for module in given[holder].modules()
        if isinstance(module, parametrize.ParametrizationList)
        for each in module
    }
    assert set(CODE.findall(row.to)) <= held


def test_tall_iterates_are_those_of_cayley_sgd() -> None:
    """Algorithm 1 of Li, Fuxin & Todorovic (2020), with its fixed point Y = X + lr W (X + Y) / 2 solved for."""
    generator = torch.Generator().manual_seed(0)
    x = Stiefel().random(9, 4, dtype=torch.float64, generator=generator)
    ours, m, eye = nn.Parameter(x.clone()), torch.zeros_like(x), torch.eye(9, dtype=torch.float64)
    cayley = Stiefel(retraction=manifolds.retractions.cayley)
    optimizer = constraints.optim.RiemannianSGD([{"params": [ours], "manifold": cayley}], lr=0.05, momentum=0.9)
    for _ in range(20):
        g = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        ours.grad = g.clone()
        optimizer.step()
        m = 0.9 * m - g
        w = m @ x.T - x @ (x.T @ m @ x.T) / 2
        w = w - w.T
        m = w @ x
        x = torch.linalg.solve(eye - 0.025 * w, x + 0.025 * w @ x)
    torch.testing.assert_close(ours.detach(), x, rtol=1e-11, atol=1e-12)


def test_square_iterates_are_those_of_pogo_to_third_order() -> None:
    """Halving the rate takes the distance of two steps to an eighth."""
    pogo = pytest.importorskip("pogo", reason="needs Python 3.11")
    base = importlib.import_module("pogo.base")
    generator = torch.Generator().manual_seed(0)
    x = Stiefel().random(5, 5, dtype=torch.float64, generator=generator)
    gradients = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator)

    def distance(lr: float) -> float:
        ours, theirs = nn.Parameter(x.clone()), nn.Parameter(x.clone()[None])
        sgd = torch.optim.SGD([{"params": [ours], "manifold": Stiefel()}], lr=lr, momentum=0.9)
        retracted = constraints.optim.Retracted(sgd, gradient=lambda manifold, x, g: g, carry=False)
        other = pogo.POGO([theirs], base.SGD(momentum=0.9), lr, rows=False)
        for g, first in zip(gradients, (1.9, 1.0), strict=True):  # its momentum starts as the gradient, and adds it
            ours.grad, theirs.grad = first * g, g.clone()[None]
            retracted.step()
            other.step()
        return float((ours - theirs[0]).detach().norm())

    assert 0 < distance(0.01) <= 0.14 * distance(0.02)


def test_a_learning_rate_of_geoopt_carries_over() -> None:
    """From one start, at one rate, the losses of 50 steps of RiemannianAdam here and there stay together."""
    geoopt = importlib.import_module("geoopt")
    generator = torch.Generator().manual_seed(0)
    x = Stiefel().random(20, 4, dtype=torch.float64, generator=generator)
    factor = torch.randn(20, 20, dtype=torch.float64, generator=generator)
    matrix = factor @ factor.T / 100
    mine, other = nn.Parameter(x.clone()), geoopt.ManifoldParameter(x.clone(), manifold=geoopt.EuclideanStiefel())
    sides = [
        (
            mine,
            constraints.optim.RiemannianAdam([{"params": [mine], "manifold": Stiefel}], lr=0.05, second_moment="sum"),
        ),
        (other, geoopt.optim.RiemannianAdam([other], lr=0.05)),
    ]
    for _ in range(50):
        losses = []
        for p, optimizer in sides:
            optimizer.zero_grad()
            loss = -torch.trace(p.T @ matrix @ p)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.testing.assert_close(losses[0], losses[1], rtol=5e-4, atol=0)
    # as far as such a step goes: half of this rate is seen
    start = -torch.trace(x.T @ matrix @ x).item()
    assert abs(losses[0] - start) > 0.5


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("geoopt.EuclideanStiefel().proju(x, a)", "Stiefel().project(x, g)"),
        ("layer.weight", 'constrain(layer, "weight", Stiefel)'),
        (
            'parametrizations.orthogonal(layer, "weight")',
            'constrain(layer, "weight", Stiefel)\nunconstrain(layer, "weight")',
        ),
    ],
)
def test_a_row_that_does_something_else_is_seen(theirs: str, ours: str) -> None:
    with pytest.raises(AssertionError):
        test_a_row_does_the_same_on_both_sides(Row("geoopt", "", theirs, ours))
