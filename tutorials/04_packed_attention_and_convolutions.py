"""
Packed weights: attention, gates, experts and convolutions
==========================================================

Question: which line holds the blocks of *my* layer, whichever way they are packed?

A layer often stores several matrices in one tensor. A layout says where they lie: ``BlockSpec`` for blocks that follow
one another along an axis, ``BlockSpec.pattern`` in einops notation for anything else. Below is one line for each of the
common layers. To be sure that the line holds what it should, the blocks are then cut out of the weight by hand, with a
loop and an index, and each is looked at.

Answer: every block of every layer is orthonormal, to 1e-5. And a small attention network, in which all of the packed
weights are held at once, reads handwritten digits as well as its free twin, within 4 points.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from constraints import constrain, report
from manifolds import BlockSpec, Sphere, Stiefel

torch.manual_seed(0)


def off(block: Tensor) -> float:
    """max |B'B - I| of a matrix, or of its transpose if it is wide."""
    tall = block if block.shape[0] >= block.shape[1] else block.T
    return float((tall.T @ tall - torch.eye(tall.shape[1])).abs().max())


def check(what: str, blocks: Iterable[Tensor]) -> None:
    """Every block is orthonormal."""
    errors = [off(block.detach()) for block in blocks]
    print(f"{what:31} number of blocks {len(errors):2}, worst |B'B - I| {max(errors):.0e}")
    assert max(errors) < 1e-5, f"a block of {what} is not orthonormal"


# %%
# Attention
# ---------
#
# What torch packs itself is known: q, k and v of ``MultiheadAttention`` are three blocks on axis 0.

attention = nn.MultiheadAttention(32, num_heads=4)
constrain(attention, "in_proj_weight", Stiefel**3)

check("q, k, v", [attention.in_proj_weight[32 * i : 32 * (i + 1)] for i in range(3)])

# %%
# Each head by itself: 8 of the rows of q are those of its first head, and so on. Wide blocks have orthonormal rows.

attention = nn.MultiheadAttention(32, num_heads=4)
heads = BlockSpec.pattern("(qkv head d) e -> (qkv head) d e", qkv=3, head=4)
constrain(attention, "in_proj_weight", Stiefel, layout=heads)

check("each head of q, k, v", [attention.in_proj_weight[8 * i : 8 * (i + 1)] for i in range(12)])

# %%
# The projection back, of shape (32, 32), takes 8 columns from each head. Here a block is a part of all rows.

constrain(attention, "out_proj.weight", Stiefel, layout=BlockSpec(rows=4, axis=1))

check("output projection of each head", [attention.out_proj.weight[:, 8 * i : 8 * (i + 1)] for i in range(4)])

# %%
# Grouped queries: many heads of q share few of k and v, so that the blocks have different sizes.

qkv = nn.Linear(32, 32 + 16 + 16)
constrain(qkv, "weight", Stiefel, layout=BlockSpec(rows=(32, 16, 16)))

check("grouped queries", [qkv.weight[:32], qkv.weight[32:48], qkv.weight[48:]])

# %%
# GPT-2 stores its weights transposed, input x output: q, k and v lie side by side, on axis 1.


class Conv1D(nn.Module):
    """y = x W, as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


side_by_side = Conv1D(32, 3 * 32)
constrain(side_by_side, "weight", Stiefel, layout=BlockSpec(rows=3, axis=1))

check("GPT-2, axis 1", [side_by_side.weight[:, 32 * i : 32 * (i + 1)] for i in range(3)])

# %%
# GPT-NeoX and BLOOM interleave: q, k and v of the first head, then those of the second. The pattern names the axes in
# the order in which they are stored, and ``view`` cuts them by hand.

interleaved = nn.Linear(32, 3 * 32)
constrain(interleaved, "weight", Stiefel, layout=BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=4, qkv=3))

stored = interleaved.weight.view(4, 3, 8, 32)
check("interleaved, each head", [stored[head, i] for head in range(4) for i in range(3)])

# %%
# The same weight with q, k and v whole, each of them made of rows that lie far apart:

interleaved = nn.Linear(32, 3 * 32)
constrain(interleaved, "weight", Stiefel, layout=BlockSpec.pattern("(head qkv d) e -> qkv (head d) e", head=4, qkv=3))

stored = interleaved.weight.view(4, 3, 8, 32)
check("interleaved, q, k, v", [torch.cat([stored[head, i] for head in range(4)]) for i in range(3)])

# %%
# Gates and experts
# -----------------
#
# A gated layer (SwiGLU) has gate and up projection in one matrix; a product may hold one and leave the other free.

gated = nn.Linear(32, 2 * 64)
constrain(gated, "weight", Stiefel**2)

check("gate, up", [gated.weight[:64], gated.weight[64:]])

# %%
# Experts are a stack of matrices. Axes before the last two are batch axes: there is nothing to say.


class Experts(nn.Module):
    """One matrix for each expert, (experts, outputs, inputs)."""

    def __init__(self, experts: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,bei->beo", self.weight, x)


experts = Experts(6, 48, 32)
constrain(experts, "weight", Stiefel)

check("experts", experts.weight)

# %%
# With gate and up in every expert, a negative axis counts from the last one, so that the experts stay a batch.

experts = Experts(6, 2 * 48, 32)
constrain(experts, "weight", Stiefel, layout=BlockSpec(rows=2, axis=-2))

check("gate, up of each expert", [half for expert in experts.weight for half in (expert[:48], expert[48:])])

# %%
# A block-diagonal matrix is stored as its blocks, and so is a stack of experts, too. Its blocks on the diagonal make an
# orthogonal matrix of all of it.

diagonal = constrain(Experts(4, 8, 8), "weight", Stiefel)

check("block-diagonal, the blocks", diagonal.weight)
check("block-diagonal, the whole", [torch.block_diag(*diagonal.weight)])

# %%
# Convolutions
# ------------
#
# A kernel of a convolution has four axes, and what is a matrix is for you to say. In a grouped convolution each group
# is a convolution of its own; here its matrix is outputs x (inputs and kernel).

grouped = nn.Conv2d(16, 32, 3, groups=4)
constrain(grouped, "weight", Stiefel, layout=BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=4))

check("grouped convolution", [grouped.weight[8 * g : 8 * (g + 1)].flatten(1) for g in range(4)])

# %%
# A depthwise convolution has one kernel for each channel. Its matrix has one row: the kernel has norm 1, and ``Sphere``
# says the same.

depthwise = nn.Conv2d(16, 16, 3, groups=16)
constrain(depthwise, "weight", Sphere, layout=BlockSpec.pattern("c i h w -> c (i h w)"))

check("depthwise convolution", [kernel.reshape(1, 9) for kernel in depthwise.weight])

# %%
# Each pixel of the kernel as a matrix from inputs to outputs:

convolution = nn.Conv2d(16, 16, 3)
constrain(convolution, "weight", Stiefel, layout=BlockSpec.pattern("o i h w -> (h w) o i"))

check("each pixel of a convolution", [convolution.weight[:, :, h, w] for h in range(3) for w in range(3)])

# %%
# What does not fit is an error that says so, and changes nothing.

try:
    constrain(nn.Linear(32, 64), "weight", Stiefel, layout=BlockSpec(rows=(32, 16)))
except ValueError as error:
    print(error)

# %%
# All at once
# -----------
#
# A network for handwritten digits, 8 x 8 pixels: a grouped convolution, whose 3 x 3 pixels are tokens of 32 channels,
# one layer of attention, one gated layer. All of it but the first and the last map is held.


class Reader(nn.Module):
    """(batch, 1, 8, 8) to the scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 3, padding=1)
        self.mix = nn.Conv2d(32, 32, 3, stride=2, groups=4)
        self.attention = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
        self.gated, self.down = nn.Linear(32, 2 * 64), nn.Linear(64, 32)
        self.place = nn.Parameter(0.1 * torch.randn(9, 32))
        self.classify = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.mix(self.embed(image).relu()).flatten(2).mT + self.place
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        gate, up = self.gated(tokens).chunk(2, -1)
        tokens = tokens + self.down(nn.functional.silu(gate) * up)
        scores: Tensor = self.classify(tokens.mean(1))
        return scores


free = Reader()
held = copy.deepcopy(free)
constrain(held, "attention.in_proj_weight", Stiefel**3)
constrain(held, "attention.out_proj.weight", Stiefel, layout=BlockSpec(rows=4, axis=1))
constrain(held, "gated.weight", Stiefel**2)
constrain(held, "down.weight", Stiefel)
constrain(held, "mix.weight", Stiefel, layout=BlockSpec.pattern("(g o) i h w -> g o (i h w)", g=4))

data = load_digits()
images, labels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
shuffled = torch.randperm(len(labels))
test, training = shuffled[:360], shuffled[360:]

EPOCHS, BATCH, RATE = 12, 32, 4e-3
models = {"free": free, "held": held}
optimizers = {name: torch.optim.Adam(model.parameters(), RATE) for name, model in models.items()}
schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS) for optimizer in optimizers.values()]
accuracies: dict[str, list[float]] = {name: [] for name in models}
for _ in tqdm(range(EPOCHS), desc="training", unit="epoch"):
    for batch in training[torch.randperm(len(training))].split(BATCH):
        for name, model in models.items():
            optimizers[name].zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizers[name].step()
    for schedule in schedules:
        schedule.step()
    for name, model in models.items():
        with torch.no_grad():
            accuracies[name].append((model(images[test]).argmax(1) == labels[test]).double().mean().item())

# %%
# After training, the report of all that is held: one residual for each block.

print(report(held))

# %%
# The report and a loop by hand agree, and so do the two networks.

check("q, k, v", [held.attention.in_proj_weight[32 * i : 32 * (i + 1)] for i in range(3)])
check("output projection of each head", [held.attention.out_proj.weight[:, 8 * i : 8 * (i + 1)] for i in range(4)])
check("gate, up", [held.gated.weight[:64], held.gated.weight[64:]])
check("down", [held.down.weight])
check("grouped convolution", [held.mix.weight[8 * g : 8 * (g + 1)].flatten(1) for g in range(4)])

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, color in (("free", "#6b6b6b"), ("held", "#0072b2")):
    axis.plot(range(1, EPOCHS + 1), accuracies[name], color=color, label=name)
axis.set(xlabel="epoch", ylabel="test accuracy", ylim=(None, 1), title="Attention with every packed weight held")
axis.legend(frameon=False)
plt.show()

print(", ".join(f"{name} {accuracy[-1]:.1%}" for name, accuracy in accuracies.items()))
assert accuracies["held"][-1] > 0.9, "the network did not learn; chance is 10 %"
# 360 test digits: one standard error of a difference is about 1.5 %
assert accuracies["held"][-1] > accuracies["free"][-1] - 0.04, "the network is behind its free twin"
