"""A small GPT and a small ResNet, as their authors would write them, and the lines that constrain them.

This file is also a script: it loads a trained model in a process of its own and writes what it computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from constraints import BlockSpec, Riemannian, Trivialization, constrain
from constraints.method import Method
from manifolds import Stiefel
from tests.seeds import follow

# A character-level GPT ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention with q, k and v in one Linear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GroupedQueryAttention(nn.Module):
    """Causal self-attention where several heads of q share one head of k and v."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.sizes = (width, width * kv_heads // heads, width * kv_heads // heads)
        self.q_kv = nn.Linear(width, sum(self.sizes), bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (n, -1)).transpose(1, 2)
            for t, n in zip(
                self.q_kv(x).split(self.sizes, dim=-1), (self.heads, self.kv_heads, self.kv_heads), strict=True
            )
        )
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x), gate and up in one Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), GatedMLP(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, vocabulary: int = 128, width: int = 32, length: int = 32) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(
            Block(width, Attention(width, heads=4)), Block(width, GroupedQueryAttention(width, heads=4, kv_heads=2))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def constrain_gpt(model: GPT, method: Method) -> GPT:
    constrain(model, "*.qkv.weight", Stiefel**3, method)
    constrain(model, "*.q_kv.weight", Stiefel, method, layout=BlockSpec(rows=(32, 16, 16)))
    constrain(model, "*.gate_up.weight", Stiefel**2, method)
    constrain(model, "*.proj.weight", Stiefel, method)
    return model


def gpt_blocks(model: GPT) -> Iterator[Tensor]:
    """Every constrained matrix, cut by hand."""
    first, second = model.blocks[0], model.blocks[1]
    yield from first.attention.qkv.weight.chunk(3)  # type: ignore[operator,union-attr]
    yield from second.attention.q_kv.weight.split((32, 16, 16))  # type: ignore[operator,union-attr]
    for block in (first, second):
        yield block.attention.proj.weight  # type: ignore[union-attr,misc]
        yield from block.mlp.gate_up.weight.chunk(2)  # type: ignore[operator,union-attr]


def gpt_batch(step: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Random windows of the language reference that comes with Python, and the same one character on."""
    text = _reference()
    starts = torch.randint(len(text) - 33, (count,), generator=torch.Generator().manual_seed(step))
    windows = torch.stack([text[s : s + 33] for s in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


@cache
def _reference() -> Tensor:
    from pydoc_data.topics import topics

    return torch.tensor([min(ord(c), 127) for c in "".join(topics[key] for key in sorted(topics))[:100_000]])


# A ResNet for 8 x 8 digits ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A plain convolution, a grouped one, and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.grouped = nn.Conv2d(outside, outside, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if (inside, stride) != (outside, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.grouped(functional.relu(self.bn1(self.conv(x)))))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.Sequential(Residual(8, 8, 1, groups=2), Residual(8, 16, 2, groups=4))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def constrain_resnet(model: ResNet, method: Method) -> ResNet:
    constrain(model, "*.conv.weight", Stiefel, method, layout=grouped(1))
    constrain(model, "stages.0.grouped.weight", Stiefel, method, layout=grouped(2))
    constrain(model, "stages.1.grouped.weight", Stiefel, method, layout=grouped(4))
    return model


def grouped(groups: int) -> Any:
    return BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=groups)


def resnet_blocks(model: ResNet) -> Iterator[Tensor]:
    """Every constrained matrix, cut by hand."""
    for stage, groups in zip(model.stages, (2, 4), strict=True):
        yield stage.conv.weight.flatten(1)  # type: ignore[operator,union-attr]
        for group in stage.grouped.weight.chunk(groups):  # type: ignore[operator,union-attr]
            yield group.flatten(1)


def resnet_batch(step: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Handwritten digits."""
    images, labels = _digits()
    chosen = torch.randint(len(labels), (count,), generator=torch.Generator().manual_seed(step))
    return images[chosen], labels[chosen]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


# Both -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A model of other people: how it is made, constrained, fed, and which matrices are orthonormal."""

    name: str
    make: Callable[[], Any]
    constrain: Callable[[Any, Method], Any]
    blocks: Callable[[Any], Iterator[Tensor]]
    batch: Callable[..., tuple[Tensor, Tensor]]


RECIPES = {
    "GPT": Recipe("GPT", GPT, constrain_gpt, gpt_blocks, gpt_batch),
    "ResNet": Recipe("ResNet", ResNet, constrain_resnet, resnet_blocks, resnet_batch),
}
METHODS: dict[str, Method] = {"Trivialization": Trivialization(), "Riemannian": Riemannian()}


def error(blocks: Iterator[Tensor]) -> float:
    """max |X^T X - I| over matrices with orthonormal columns, or rows where they are wide."""
    worst = 0.0
    for block in blocks:
        x = block.detach().double()
        x = x if x.shape[0] >= x.shape[1] else x.T
        worst = max(worst, float((x.T @ x - torch.eye(x.shape[1])).abs().max()))
    return worst


def main(name: str, method: str, folder: str) -> None:
    """Load a saved model, constrained and exported, and write what both compute."""
    recipe, place = RECIPES[name], Path(folder)
    load = partial(torch.load, weights_only=True)
    constrained = recipe.constrain(recipe.make(), METHODS[method])
    constrained.load_state_dict(load(place / "constrained.pt"), strict=True)
    plain = recipe.make()
    plain.load_state_dict(load(place / "plain.pt"), strict=True)
    x, _ = recipe.batch(1000)
    outputs = [model.eval()(x).detach() for model in (constrained, plain)]
    torch.save([*outputs, torch.tensor(error(recipe.blocks(constrained)))], place / "outputs.pt")


if __name__ == "__main__":
    follow()
    main(*sys.argv[1:])
