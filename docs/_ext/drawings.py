"""The directive `layout`: a drawing of a packed tensor and of its blocks, made by the layout itself.

The layout unpacks a tensor that holds the number of each of its entries, so that a drawing cannot disagree with the
code. Colours of lines and text are those of the page, so that it is legible in light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from manifolds import BlockSpec, Layout

CELL, GAP, LINE, SPACE = 13, 5, 17, 14
WIDTH = 620
SHOWN = 8
COLORS = ("#4c9be8", "#e8a33d", "#3cb58a", "#cf7bb0", "#b8a22c", "#e0704a", "#7f87d8", "#8a9199")

Shape = tuple[int, ...]


class Canvas:
    """SVG in the making, and how far it reaches."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.width = self.height = 0.0

    def cell(self, x: float, y: float, color: str) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" fill="{color}"/>')
        self._reach(x + CELL, y + CELL)

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>')
        half = 3.6 * len(text)
        self._reach(x + {"middle": half, "start": 2 * half, "end": 0}[anchor], y + 4)

    def arrow(self, x: float, y: float) -> None:
        self.parts.append(f'<path d="M{x:g} {y:g} h24 m-7 -5 l7 5 l-7 5"/>')
        self._reach(x + 24, y)

    def svg(self, title: str) -> str:
        w, h = math.ceil(self.width) + 1, math.ceil(self.height) + 1
        return (
            f'<svg class="layout" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">'
            f"<title>{html.escape(title)}</title>{''.join(self.parts)}</svg>"
        )

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)


def place(shape: Shape) -> tuple[Callable[[Shape], tuple[float, float]], float, float]:
    """(entry -> its corner, width, height) of a tensor: matrices in a row for three axes, in a grid for four."""
    rows, columns, h, w = (1,) * (4 - len(shape)) + shape
    step_x, step_y = w * CELL + GAP, h * CELL + GAP

    def corner(index: Shape) -> tuple[float, float]:
        row, column, i, j = (0,) * (4 - len(index)) + index
        return column * step_x + j * CELL, row * step_y + i * CELL

    return corner, columns * step_x - GAP, rows * step_y - GAP


def draw(layout: Layout, shape: Shape, axes: list[str], names: list[str]) -> str:
    """The packed tensor of this shape at the left, its first blocks at the right."""
    entries = torch.arange(math.prod(shape)).reshape(shape)
    blocks = layout.unpack(entries)
    owner = {int(e): i for i, block in enumerate(blocks) for e in block.flatten()}
    canvas = Canvas()
    corner, width, height = place(shape)
    left, top = 7.2 * len(axes[0]) + 6 if len(shape) > 1 else 0.0, LINE
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
        x, y = corner(tuple(index))
        canvas.cell(left + x, top + y, COLORS[owner[int(entries[tuple(index)])] % len(COLORS)])
    if len(shape) > 1:
        canvas.text(left - 5, top + height / 2 + 4, axes[0], "end")
    canvas.text(left + width / 2, top - 5, " \u00d7 ".join(axes[1:]) or axes[0])
    canvas.arrow(left + width + SPACE, top + min(height / 2, 60))
    start = x = left + width + 2 * SPACE + 24
    y, tallest = float(top), 0.0
    for i, block in enumerate(blocks[:SHOWN]):
        corner, w, h = place(tuple(block.shape))
        name = names[i] if i < len(names) else f"block {i}"
        room = max(w, 7.2 * len(name))
        if x > start and x + room > WIDTH:
            x, y, tallest = start, y + tallest + 2 * LINE, 0.0
        for index in torch.cartesian_prod(*(torch.arange(n) for n in block.shape)).reshape(-1, block.dim()).tolist():
            a, b = corner(tuple(index))
            canvas.cell(x + (room - w) / 2 + a, y + b, COLORS[i % len(COLORS)])
        canvas.text(x + room / 2, y + h + LINE - 3, name)
        x, tallest = x + room + SPACE, max(tallest, h)
    if len(blocks) > SHOWN:
        canvas.text(x, y + tallest / 2 + 4, f"… {len(blocks) - SHOWN} more", "start")
    return canvas.svg(f"{layout!r} on shape {shape}: {len(blocks)} blocks")


class Drawing(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {
        "shape": directives.unchanged_required,
        "axes": directives.unchanged_required,
        "names": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        layout = eval(self.arguments[0], {"BlockSpec": BlockSpec})
        shape = tuple(int(n) for n in self.options["shape"].split(","))
        axes = [axis.strip() for axis in self.options["axes"].split(",")]
        names = [name.strip() for name in self.options.get("names", "").split(",") if name.strip()]
        svg = f'<div class="layout-drawing">{draw(layout, shape, axes, names)}</div>'
        return [nodes.raw("", svg, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("layout", Drawing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
