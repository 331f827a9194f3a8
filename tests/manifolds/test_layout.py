"""unpack and pack are inverse, blocks lie where the layout says, and blocks are views wherever that is possible."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manifolds import BlockSpec, Layout

HEADS = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)
GROUPS = BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=2)
KERNELS = BlockSpec.pattern("o i h w -> (o i) h w")
BY_TYPE = BlockSpec.pattern("(head qkv d) e -> qkv (head d) e", head=2, qkv=3)


def numbered(*shape: int) -> Tensor:
    """Every entry tells its own place."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


# By loops: where the entry at each place of the packed tensor goes -----------------------------------------------


def rows_by_loop(x: Tensor, sizes: list[int], axis: int) -> list[Tensor]:
    blocks, start = [], 0
    for size in sizes:
        blocks.append(torch.stack([x.select(axis, start + i) for i in range(size)], axis))
        start += size
    return blocks


def heads_by_loop(x: Tensor) -> list[Tensor]:
    head, qkv, d = 2, 3, x.shape[0] // 6
    blocks = torch.zeros(head * qkv, d, x.shape[1], dtype=x.dtype)
    for h, q, i, e in itertools.product(range(head), range(qkv), range(d), range(x.shape[1])):
        blocks[h * qkv + q, i, e] = x[(h * qkv + q) * d + i, e]
    return list(blocks)


def types_by_loop(x: Tensor) -> list[Tensor]:
    head, qkv, d = 2, 3, x.shape[0] // 6
    blocks = torch.zeros(qkv, head * d, x.shape[1], dtype=x.dtype)
    for h, q, i, e in itertools.product(range(head), range(qkv), range(d), range(x.shape[1])):
        blocks[q, h * d + i, e] = x[(h * qkv + q) * d + i, e]
    return list(blocks)


def groups_by_loop(x: Tensor) -> list[Tensor]:
    o, (i, h, w) = x.shape[0] // 2, x.shape[1:]
    blocks = torch.zeros(2, o, i * h * w, dtype=x.dtype)
    for g, a, b, c, d in itertools.product(range(2), range(o), range(i), range(h), range(w)):
        blocks[g, a, (b * h + c) * w + d] = x[g * o + a, b, c, d]
    return list(blocks)


def kernels_by_loop(x: Tensor) -> list[Tensor]:
    return [x[o, i] for o in range(x.shape[0]) for i in range(x.shape[1])]


KINDS = [
    (BlockSpec(rows=3), (6, 4), lambda x: rows_by_loop(x, [2, 2, 2], 0), True),
    (BlockSpec(rows=1), (6, 4), lambda x: [x], True),
    (BlockSpec(rows=(4, 1, 2)), (7, 3), lambda x: rows_by_loop(x, [4, 1, 2], 0), True),
    (BlockSpec(rows=2, axis=1), (3, 4), lambda x: rows_by_loop(x, [2, 2], 1), True),
    (BlockSpec(rows=(1, 3), axis=-1), (3, 4), lambda x: rows_by_loop(x, [1, 3], 1), True),
    (BlockSpec(rows=2, axis=2), (3, 2, 4), lambda x: rows_by_loop(x, [2, 2], 2), True),
    (HEADS, (12, 3), heads_by_loop, True),
    (BY_TYPE, (12, 3), types_by_loop, False),  # the rows of a block are not evenly spaced
    (GROUPS, (4, 3, 2, 2), groups_by_loop, True),
    (KERNELS, (2, 3, 2, 2), kernels_by_loop, True),
]
every_kind = pytest.mark.parametrize(("layout", "shape", "by_loop", "view"), KINDS, ids=[str(k[0]) for k in KINDS])


@every_kind
def test_blocks_are_where_the_loops_find_them(layout: Layout, shape: tuple[int, ...], by_loop, view: bool) -> None:
    x = numbered(*shape)
    blocks, expected = layout.unpack(x), by_loop(x)
    assert len(blocks) == len(expected) == len(layout.shapes(shape))
    for block, right, size in zip(blocks, expected, layout.shapes(shape), strict=True):
        assert tuple(block.shape) == size
        assert torch.equal(block, right)


@every_kind
def test_pack_inverts_unpack(layout: Layout, shape: tuple[int, ...], by_loop, view: bool) -> None:
    x = numbered(*shape)
    assert torch.equal(layout.pack(layout.unpack(x), shape), x)


@every_kind
def test_blocks_share_memory_where_the_layout_allows(layout: Layout, shape, by_loop, view: bool) -> None:
    x = torch.zeros(shape)
    for number, block in enumerate(layout.unpack(x), 1):
        shares = block.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert shares == view
        block.fill_(number)
    assert bool((x > 0).all()) == view


@every_kind
@pytest.mark.parametrize("batch", [(2,), (2, 3)])
def test_batch_axes_are_kept(layout: Layout, shape: tuple[int, ...], by_loop, view: bool, batch) -> None:
    x, ndim = numbered(*batch, *shape), len(shape)
    blocks = layout.unpack(x, ndim)
    for place in itertools.product(*map(range, batch)):
        for block, alone in zip(blocks, by_loop(x[place]), strict=True):
            assert torch.equal(block[place], alone)
    assert torch.equal(layout.pack(blocks, shape), x)


def subsets(count: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, count + 1):
        yield from itertools.combinations(range(count), size)


@every_kind
def test_gather_selects_blocks_of_one_shape(layout: Layout, shape: tuple[int, ...], by_loop, view: bool) -> None:
    x, ndim, sizes = numbered(2, *shape), len(shape), layout.shapes(shape)
    blocks = layout.unpack(x, ndim)
    for indices in subsets(len(sizes)):
        if len({sizes[i] for i in indices}) == 1:
            stack = layout.gather(x, indices, ndim)
            assert torch.equal(stack, torch.stack([blocks[i] for i in indices], 1))


@every_kind
def test_scatter_inverts_gather_for_any_partition(layout: Layout, shape, by_loop, view: bool) -> None:
    """Even blocks and odd blocks in two parts, in either order; all in one; each on its own."""
    x, ndim, count = numbered(2, *shape), len(shape), len(layout.shapes(shape))
    sizes = layout.shapes(shape)
    even, odd = tuple(range(0, count, 2)), tuple(range(1, count, 2))
    for parts in [(even, odd), (odd, even), (tuple(range(count)),), tuple((i,) for i in reversed(range(count)))]:
        parts = tuple(p for p in parts if p)
        if all(len({sizes[i] for i in indices}) == 1 for indices in parts):
            gathered = [(indices, layout.gather(x, indices, ndim)) for indices in parts]
            assert torch.equal(layout.scatter(gathered, shape), x)


def test_gather_of_consecutive_equal_blocks_is_a_view() -> None:
    x = torch.zeros(12, 5)
    for layout, indices in [
        (BlockSpec(rows=3), (0, 1, 2)),
        (BlockSpec(rows=3), (1, 2)),
        (BlockSpec(rows=(4, 4, 2, 2)), (2, 3)),
        (HEADS, (0, 1, 2, 3, 4, 5)),
    ]:
        assert layout.gather(x, indices, 2).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_pack_derives_the_shape_from_blocks_where_it_can() -> None:
    x = numbered(12, 3)
    for layout in (BlockSpec(rows=3), BlockSpec(rows=(4, 8)), HEADS, BY_TYPE):
        assert torch.equal(layout.pack(layout.unpack(x)), x)
    with pytest.raises(ValueError, match=r"unknown sizes.*pass shape= of the packed tensor"):
        KERNELS.pack(KERNELS.unpack(numbered(2, 3, 2, 2)))


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    other=st.integers(1, 3),
    axis=st.sampled_from([0, 1, -1, -2]),
    batch=st.lists(st.integers(1, 2), max_size=2),
)
def test_explicit_sizes_round_trip(counts: list[int], other: int, axis: int, batch: list[int]) -> None:
    shape = (sum(counts), other) if axis % 2 == 0 else (other, sum(counts))
    layout, x = BlockSpec(rows=tuple(counts), axis=axis), numbered(*batch, *shape)
    blocks = layout.unpack(x, 2)
    assert [b.shape[len(batch) + axis % 2] for b in blocks] == counts
    assert torch.equal(layout.pack(blocks, shape), x)


@given(sizes=st.fixed_dictionaries({n: st.integers(1, 3) for n in "abcd"}), order=st.permutations("abcd"))
def test_any_pattern_round_trips(sizes: dict[str, int], order: list[str]) -> None:
    """(a b) c d -> any order of the names: the entry at (a, b, c, d) goes to that place."""
    p, q, r, s = order
    layout = BlockSpec.pattern(f"(a b) c d -> ({p} {q}) {r} {s}", **sizes)
    x = numbered(sizes["a"] * sizes["b"], sizes["c"], sizes["d"])
    blocks = layout.unpack(x)
    assert torch.equal(layout.pack(blocks, x.shape), x)
    for place in itertools.product(*(range(sizes[n]) for n in "abcd")):
        at = dict(zip("abcd", place, strict=True))
        block = blocks[at[p] * sizes[q] + at[q]]
        assert block[at[r], at[s]] == x[at["a"] * sizes["b"] + at["b"], at["c"], at["d"]]


@every_kind
def test_a_layout_is_a_value(layout: Layout, shape: tuple[int, ...], by_loop, view: bool) -> None:
    copy = pickle.loads(pickle.dumps(layout))
    assert copy == layout
    assert hash(copy) == hash(layout)
    assert eval(repr(layout), {"BlockSpec": BlockSpec}) == layout


def test_a_list_of_sizes_is_the_same_value_as_a_tuple() -> None:
    assert BlockSpec(rows=[4, 2]) == BlockSpec(rows=(4, 2))  # type: ignore[arg-type]
    assert BlockSpec.pattern("a b -> a b", b=1, a=2) == BlockSpec.pattern("a b -> a b", a=2, b=1)


ERRORS = {
    "rows that do not divide": (
        lambda: BlockSpec(rows=3).unpack(numbered(7, 2)),
        "BlockSpec(rows=3, axis=0) needs axis 0 to divide into 3 equal blocks; got shape (7, 2), where that axis has "
        "length 7. Change rows, or give each size: BlockSpec(rows=(...)).",
    ),
    "sizes that do not add up": (
        lambda: BlockSpec(rows=(4, 2)).unpack(numbered(7, 2)),
        "BlockSpec(rows=(4, 2), axis=0) needs axis 0 of length 6, the sum of its blocks; got shape (7, 2), where that "
        "axis has length 7. Give sizes that add up to 7.",
    ),
    "an axis that is not there": (
        lambda: BlockSpec(rows=2, axis=2).shapes((4, 4)),
        "BlockSpec(rows=2, axis=2) cuts axis 2; got shape (4, 4), which has 2 axes.",
    ),
    "no rows": (lambda: BlockSpec(rows=0), "each at least 1; got 0."),
    "no sizes": (lambda: BlockSpec(rows=()), "each at least 1; got ()."),
    "a size of zero": (lambda: BlockSpec(rows=(2, 0)), "each at least 1; got (2, 0)."),
    "a block too few": (
        lambda: BlockSpec(rows=3).pack([numbered(2, 2)] * 2),
        "BlockSpec(rows=3, axis=0) has 3 blocks; got 2. Pass one tensor for each block.",
    ),
    "no arrow": (lambda: BlockSpec.pattern("a b c"), 'a pattern is "axes -> blocks axes"'),
    "two arrows": (lambda: BlockSpec.pattern("a -> b -> c"), "with one ->"),
    "names on one side only": (
        lambda: BlockSpec.pattern("a b -> a c"),
        "do not name the same axes once each: ['a', 'b'] and ['a', 'c'].",
    ),
    "a name twice": (lambda: BlockSpec.pattern("a a -> a a"), "do not name the same axes once each"),
    "an open bracket": (lambda: BlockSpec.pattern("(a b -> a b"), "grouped by ( )"),
    "an ellipsis": (lambda: BlockSpec.pattern("... a b -> ... a b"), "batch axes are kept"),
    "a size that is not named": (
        lambda: BlockSpec.pattern("a b -> a b", c=2),
        "gives sizes of ['c'], which it does not name.",
    ),
    "a size of zero in a pattern": (
        lambda: BlockSpec.pattern("(a b) c -> a b c", a=0).shapes((4, 2)),
        "a=0) gives a size below 1; every axis",
    ),
    "too few axes": (
        lambda: HEADS.unpack(numbered(12)),
        "names 2 axes; got shape (12,), which has 1.",
    ),
    "a size that does not divide": (
        lambda: HEADS.unpack(numbered(13, 2)),
        "head=2, qkv=3 does not fit the axis (head qkv d) of length 13 of shape (13, 2).",
    ),
    "two unknown sizes": (
        lambda: BlockSpec.pattern("(a b) c -> a b c").unpack(numbered(6, 2)),
        "the axis (a b) of length 6 has unknown sizes a and b with no sizes; got shape (6, 2).",
    ),
    "blocks of another shape": (
        lambda: HEADS.pack([numbered(3, 3)] * 6, (12, 3)),
        "has blocks (6, 2, 3) for shape (12, 3); got (6, 3, 3).",
    ),
    "blocks of unequal shape": (
        lambda: HEADS.pack([numbered(2, 3)] * 5 + [numbered(1, 3)], (12, 3)),
        "has blocks of one shape; got [(1, 3), (2, 3)].",
    ),
    "blocks in another order": (
        lambda: BlockSpec(rows=(2, 3)).pack([numbered(3, 2), numbered(2, 2)]),
        "BlockSpec(rows=(2, 3), axis=0) has blocks ((2, 2), (3, 2)) for shape (5, 2); got ((3, 2), (2, 2)).",
    ),
    "blocks of unequal rows": (
        lambda: BlockSpec(rows=3).pack([numbered(1, 2), numbered(2, 2), numbered(3, 2)]),
        "has blocks ((2, 2), (2, 2), (2, 2)) for shape (6, 2); got ((1, 2), (2, 2), (3, 2)).",
    ),
    "blocks of another packed shape": (
        lambda: BlockSpec(rows=2).pack([numbered(2, 2)] * 2, (8, 2)),
        "has blocks ((4, 2), (4, 2)) for shape (8, 2); got ((2, 2), (2, 2)).",
    ),
    "blocks without the axis": (lambda: BlockSpec(rows=2, axis=1).pack([numbered(2)] * 2), "which has 1 axes."),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=list(ERRORS))
def test_errors_say_the_rule_what_came_and_the_way_out(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
