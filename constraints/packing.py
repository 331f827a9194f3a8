"""What torch's own modules pack into one tensor, and how a module of your own says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from manifolds import BlockSpec, Layout, Manifold, ProductManifold, Scaled
from manifolds.compositions import ComposedProduct, Composition


@dataclass(frozen=True)
class Packing:
    """What one tensor of a module holds, in words, and the ways to cut it.

    what: as in "3 gate matrices (r, z, n) on axis 0".
    readings: (what is constrained then, layout), the usual reading first. A manifold is offered those whose blocks have
    as many axes as its points; where the tensor as a whole comes first, it needs no layout.

    >>> Packing.stack("q", "k", "v", noun="projection").what
    '3 projection matrices (q, k, v) on axis 0'
    """

    what: str
    readings: tuple[tuple[str, Layout], ...]

    @classmethod
    def stack(
        cls,
        *names: str,
        sizes: tuple[int, ...] | None = None,
        noun: str = "block",
        heads: int | tuple[int, ...] | None = None,
    ) -> Packing:
        """Matrices of these names stacked on axis 0, equal or of these sizes; one name stands for the whole tensor.

        heads: how many heads of attention are stacked in each matrix, or in all alike; offers head by head too.
        Raises ValueError where names, sizes and heads disagree, or heads have unequal sizes.
        """
        _check_stack(names, sizes, heads)
        whole = BlockSpec(rows=1, axis=0)
        readings: list[tuple[str, Layout]] = [(f"the {noun}", whole)]
        what = f"one {noun} ({names[0]})"
        if len(names) > 1:
            what = f"{len(names)} {noun} matrices ({', '.join(names)}) on axis 0"
            readings = [(f"each {noun}", BlockSpec(rows=sizes or len(names), axis=0)), ("the stack", whole)]
        if heads is not None:
            total = heads * len(names) if isinstance(heads, int) else sum(heads)
            of = f" of {', '.join(names)}" if len(names) > 1 else ""
            readings.append((f"each head{of}", BlockSpec.pattern("(head d) e -> head d e", head=total)))
        return cls(what, tuple(readings))


Rule = Callable[[Any, str], Packing | None]


def _check_stack(names: tuple[str, ...], sizes: tuple[int, ...] | None, heads: int | tuple[int, ...] | None) -> None:
    if not names:
        raise ValueError("a stack has the name of each of its matrices, as in Packing.stack('q', 'k', 'v'); got none.")
    for what, numbers in (("sizes", sizes), ("heads", heads)):
        if isinstance(numbers, tuple) and len(numbers) != len(names):
            raise ValueError(f"a stack of {', '.join(names)} has {len(names)} {what}; got {numbers}.")
    if heads is not None and (sizes is not None or isinstance(heads, tuple)):
        rows = sizes or (1,) * len(names)
        counts = heads if isinstance(heads, tuple) else (heads,) * len(names)
        if len({Fraction(size, count) for size, count in zip(rows, counts, strict=True)}) > 1:
            raise ValueError(
                f"heads of attention have one size; got matrices of {sizes or 'equal'} rows with {heads} heads."
            )


def register_packing(kind: type[nn.Module], rule: Rule) -> None:
    """Tell `constrain` what the tensors of a kind of module pack: rule(module, attribute) -> Packing, None if unknown.

    From then on a manifold that says nothing about the blocks, or has another number of them, is an error that lists
    the readings as code. Subclasses are covered, and may have a rule of their own.
    Raises TypeError for what is no class of modules, or no function.

    >>> class FusedAttention(torch.nn.Linear): ...
    >>> register_packing(FusedAttention, lambda module, attribute: Packing.stack("q", "k", "v"))
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and callable(rule)):
        raise TypeError(
            f"register_packing takes a class of modules and a function of a module and the name of its tensor; got "
            f"{kind!r:.40} and {rule!r:.40}."
        )
    _rules[kind] = rule


def packing_of(module: nn.Module, attribute: str) -> Packing | None:
    """What this tensor of the module packs, by the rule of its nearest class that has one; None if unknown."""
    for kind in type(module).__mro__:
        if kind in _rules:
            return _rules[kind](module, attribute)
    return None


def check_packing(packing: Packing, manifold: Manifold | Composition, shape: tuple[int, ...], who: str) -> None:
    """ValueError where a manifold given without a layout disagrees with how the tensor is packed, or says nothing."""
    products = ProductManifold | ComposedProduct
    product = isinstance(manifold, products)
    factor = manifold.factors[0] if isinstance(manifold, products) else manifold
    ndim = max(f.ndim for f in manifold.factors) if isinstance(manifold, products) else manifold.ndim
    readings = [(text, layout) for text, layout in packing.readings if len(layout.shapes(shape)[0]) == ndim]
    if not readings or (isinstance(manifold, products) and not manifold.stacked):
        return
    usual = readings[0][1]
    if isinstance(manifold, Scaled) and isinstance(inner := manifold.manifold, ProductManifold):
        if not inner.stacked or (isinstance(usual, BlockSpec) and usual.axis == 0 and usual.count == len(inner)):
            return  # a gain for each block
        factor = Scaled(inner.factors[0])
    if isinstance(manifold, products):
        count = len(manifold)
        if isinstance(usual, BlockSpec) and usual.axis == 0 and usual.count == count:
            return
        problem = f"{manifold} would cut it into {count} blocks"
    elif usual == BlockSpec(rows=1, axis=0):
        return
    elif len(shape) == manifold.ndim:
        problem = f"{manifold} would constrain the {shape} stack and not {readings[0][0]}"
    else:
        problem = f"{manifold} alone does not say what of the {shape} tensor it constrains"
    ways = [_way_out(factor, text, layout, product) for text, layout in readings]
    if product:
        ways.append(f"pass layout=BlockSpec(rows={len(manifold)}, axis=0) to cut it so all the same")  # type: ignore[arg-type]
    ways[0] = ways[0][0].upper() + ways[0][1:]
    raise ValueError(f"{who} packs {packing.what}; {problem}. {', or '.join(ways)}.")


def _way_out(manifold: Manifold | Composition, text: str, layout: Layout, product: bool) -> str:
    if isinstance(layout, BlockSpec) and isinstance(layout.rows, int) and layout.axis == 0 and layout.rows > 1:
        return f"write {manifold}**{layout.rows} to constrain {text}"
    # a product has a number of factors, which another layout would contradict
    return f"{f'write {manifold}, ' if product else 'pass '}layout={layout!r} to constrain {text}"


def _gates(*names: str) -> Rule:
    def rule(module: nn.Module, attribute: str) -> Packing | None:
        if attribute.startswith(("weight_ih", "weight_hh")):
            return Packing.stack(*names, noun="gate")
        return Packing.stack("projection") if attribute.startswith("weight_hr") else None

    return rule


def _attention(module: nn.MultiheadAttention, attribute: str) -> Packing | None:
    names = {"in_proj_weight": "qkv", "q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"}
    if attribute not in names:
        return None
    return Packing.stack(*names[attribute], noun="projection", heads=module.num_heads)


def _convolution(module: Any, attribute: str) -> Packing | None:
    if attribute != "weight":
        return None
    space, groups = " ".join("dhw"[-len(module.kernel_size) :]), module.groups
    axes, per_filter = (f"(g i) o {space}", f"(g i) o {space} -> (g o) (i {space})")
    kernels = f"i o {space}"
    if not module.transposed:
        axes, per_filter = f"(g o) i {space}", f"(g o) i {space} -> (g o) (i {space})"
        kernels = f"o i {space}"
    lead = kernels[:3]
    every = "each group, output x input and kernel" if groups > 1 else "output x input and kernel as one matrix"
    readings: list[tuple[str, Layout]] = [
        (every, BlockSpec.pattern(f"{axes} -> g o (i {space})", g=groups)),
        ("each filter", BlockSpec.pattern(per_filter, g=groups)),
        ("each kernel as a vector", BlockSpec.pattern(f"{kernels} -> ({lead}) ({space})")),
    ]
    if len(module.kernel_size) == 2:
        readings.insert(1, ("each kernel", BlockSpec.pattern(f"{kernels} -> ({lead}) {space}")))
    axes_of_space = "1 axis" if space == "w" else f"{len(module.kernel_size)} axes"
    what = f"{groups} group{'s'[: groups - 1]} of filters with {axes_of_space} of space"
    return Packing(what, tuple(readings))


def _bilinear(module: nn.Bilinear, attribute: str) -> Packing | None:
    if attribute != "weight":
        return None
    each, all_of_them = "o i j -> o i j", "(g o) i j -> g o (i j)"
    return Packing(
        f"{module.out_features} bilinear forms on axis 0",
        (
            ("each form", BlockSpec.pattern(each)),
            ("output x both inputs as one matrix", BlockSpec.pattern(all_of_them, g=1)),
        ),
    )


def _embedding(module: nn.Module, attribute: str) -> Packing | None:
    """One matrix, (entries, dim); a manifold of vectors holds each row."""
    return Packing.stack("rows", noun="table") if attribute == "weight" else None


_rules: dict[type[nn.Module], Rule] = {
    nn.RNN: _gates("h"),
    nn.RNNCell: _gates("h"),
    nn.GRU: _gates("r", "z", "n"),
    nn.GRUCell: _gates("r", "z", "n"),
    nn.LSTM: _gates("i", "f", "g", "o"),
    nn.LSTMCell: _gates("i", "f", "g", "o"),
    nn.MultiheadAttention: _attention,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.ConvTranspose3d: _convolution,
    nn.Bilinear: _bilinear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
}
