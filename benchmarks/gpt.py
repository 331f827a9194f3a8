"""A small GPT trained by one optimizer at one learning rate: a grid of rates, seeds and widths.

python -m benchmarks.gpt                     the runs that docs/gpt.json has not yet, then docs/transformer.md by all
python -m benchmarks.gpt --device cuda       so too: minutes on an accelerator, hours on a processor
python -m benchmarks.gpt --page              the page alone, by the runs that are there
python -m benchmarks.gpt --file my.json --steps 20 --rates 1e-3 --seeds 1 --widths 32 --layers 1

4 layers, heads of 32, fused QKV, gated MLP, tied embedding; characters of the help texts that the running Python
ships. With our optimizers the query and key of each head, its value, and each head's part of the output are on Stiefel.
"""

from __future__ import annotations

import argparse
import math
import platform
import pydoc_data.topics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from constraints import Riemannian, constrain, param_groups
from constraints.optim import Retracted, RiemannianAdamW, RiemannianMuon
from manifolds import BlockSpec, ProductManifold, Stiefel

from .gpt_page import FILE, Run, read, save, where, write_page

HEAD, CONTEXT, BATCH = 32, 128, 16
STEPS = 400


class Block(nn.Module):
    """Attention and a gated MLP, each after a normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 8 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        # (head qkv d): the layout of the product below
        q, k, v = self.qkv(self.norms[0](x)).view(b, t, self.heads, 3, HEAD).permute(3, 0, 2, 1, 4)
        a = functional.scaled_dot_product_attention(
            functional.rms_norm(q, (HEAD,)), functional.rms_norm(k, (HEAD,)), v, is_causal=True
        )
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        gate, value = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * value)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Logits of the next character."""

    def __init__(self, letters: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(letters, width), nn.Embedding(CONTEXT, width)
        self.blocks, self.norm = nn.ModuleList(Block(width) for _ in range(layers)), nn.RMSNorm(width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=width**-0.5)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embedding(letters) + self.places.weight[: letters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.mT  # type: ignore[no-any-return]


def hold(model: GPT) -> GPT:
    """Stiefel on each head's query, key and value, and on the output."""
    heads = model.places.embedding_dim // HEAD
    for i in range(len(model.blocks)):
        layout = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=heads, qkv=3)
        manifold = ProductManifold((Stiefel(),) * (3 * heads), layout)
        constrain(model, f"blocks.{i}.qkv.weight", manifold, Riemannian(), init="haar")
        constrain(model, f"blocks.{i}.out.weight", Stiefel(), Riemannian(), init="haar")
    return model


def torch_muon(model: GPT, lr: float) -> list[Optimizer]:
    """Muon on the matrices of the blocks, AdamW on the rest, as its documentation has it; one lr all the same."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(matrices, lr, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr, weight_decay=0.1),
    ]


KINDS: dict[str, Callable[[GPT, float], list[Optimizer]]] = {
    "torch AdamW": lambda model, lr: [torch.optim.AdamW(model.parameters(), lr, weight_decay=0.1)],
    "torch Muon + AdamW": torch_muon,
    "RiemannianAdamW": lambda model, lr: [RiemannianAdamW(hold(model), lr)],
    "RiemannianMuon": lambda model, lr: [RiemannianMuon(hold(model), lr)],
    "Retracted(AdamW)": lambda model, lr: [Retracted(torch.optim.AdamW(param_groups(hold(model)), lr))],
}


def runs_of_docs() -> list[Run]:
    """What the page is made of: rates a factor of 3 apart at d = 128, of 1.4 around the best of two widths."""
    held = ("RiemannianAdamW", "RiemannianMuon", "Retracted(AdamW)")
    steps = (2.5e-3, 3.5e-3, 5e-3, 7e-3, 1e-2, 1.4e-2, 2e-2, 2.8e-2, 4e-2)
    around = {64: steps[4:], 256: steps[2:7]}
    runs = []
    for seed in range(3):
        runs += [Run(kind, 128, lr, seed) for lr in (1e-3, 3e-3, 1e-2, 3e-2) for kind in KINDS]
        runs += [Run(kind, width, lr, seed) for width in around for kind in held for lr in around[width]]
        runs += [
            Run(kind, width, lr, seed) for width in around for kind in KINDS if kind not in held for lr in steps[:7]
        ]
    return runs


def characters() -> tuple[Tensor, Tensor, int]:
    """Training text, the last tenth of it for validation, and how many letters there are."""
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    data = torch.tensor([letters[letter] for letter in text])
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:], len(letters)


def batches(data: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=generator)
        yield torch.stack([data[s : s + CONTEXT + 1] for s in starts.tolist()])


def train(kind: str, width: int, lr: float, seed: int, steps: int, layers: int, device: str) -> float:
    """The validation loss after so many steps, with 5 % of warming up and a cosine to 0."""
    training, validation, letters = characters()
    torch.manual_seed(seed)
    model = GPT(letters, width, layers).to(device)
    optimizers = KINDS[kind](model, lr)

    def part(step: int) -> float:
        warm = max(1, steps // 20)
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, part) for each in optimizers]
    for batch in batches(training, steps, seed):
        batch = batch.to(device)
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    with torch.no_grad():
        found = [
            functional.cross_entropy(model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())
            for b in (batch.to(device) for batch in batches(validation, 20, 1234))
        ]
    return float(torch.stack(found).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3, 1e-2, 3e-2))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 256))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--file", type=Path, help="for a grid of your own; the options above but --device make it")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args(arguments)
    if given.file is None:
        wanted, given.steps, given.layers = runs_of_docs(), STEPS, 4
    else:
        wanted = [
            Run(kind, width, lr, seed)
            for width in given.widths
            for kind in given.kinds
            for lr in given.rates
            for seed in range(given.seeds)
        ]
    file = given.file or FILE
    python, device = platform.python_version(), given.device
    device = torch.cuda.get_device_name() if device.startswith("cuda") else device
    for run in [] if given.page else wanted:
        if run in read(file).get(where(python, device), {}):
            continue
        loss = train(run.kind, run.width, run.lr, run.seed, given.steps, given.layers, given.device)
        save(file, run, loss, python, device)
        print(*run, loss, flush=True)
    if given.file is None:
        write_page(list(KINDS))


if __name__ == "__main__":
    main()
