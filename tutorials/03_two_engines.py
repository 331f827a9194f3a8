"""
Trivialization or Riemannian?
=============================

Question: there are two engines; do they train the same model, and what differs?

``Trivialization()`` writes the weight as a retraction of free coordinates around a base point, and any optimizer trains
the coordinates. ``Riemannian()`` leaves the Parameter as it is, and an optimizer moves it along its gradient on the
manifold. The model is a GRU that reads handwritten digits row by row, with its three gates orthogonal.

Answer: by gradient descent they take the same path. It is exactly the same, to rounding, where the base moves along at
every step, as the gradient with respect to coordinates at the base *is* the Riemannian gradient. Where the base
stays, the paths part slowly and the curves look alike. With Adam the two differ by what one step size belongs to, a
number or a gate, and trivialized steps of a gate are longer by the root of 2; at one learning rate they end equally
well. Where they differ for you: names of the weights, memory, and what a step costs.
"""

from __future__ import annotations

import copy
import time

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Stiefel

torch.set_num_threads(1)  # matrices of 64 x 64 are too small to share
torch.manual_seed(0)
F64 = torch.float64

HIDDEN, BATCH = 64, 64
data = load_digits()
rows, labels = torch.tensor(data.images, dtype=F64) / 8 - 1, torch.tensor(data.target)
shuffled = torch.randperm(len(labels))
test, training = shuffled[:360], shuffled[360:]


class Reader(nn.Module):
    """Reads a digit row by row, (batch, 8, 8), and names it, (batch, 10). In float64, so that rounding is no excuse."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, HIDDEN, batch_first=True, dtype=F64)
        self.classify = nn.Linear(HIDDEN, 10, dtype=F64)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.gru(rows)
        scores: Tensor = self.classify(states[:, -1])
        return scores

    def gates(self) -> Tensor:
        """The packed gates, (3H, H)."""
        weight = self.gru.weight_hh_l0
        assert isinstance(weight, Tensor)
        return weight.detach()


GATES = "gru.weight_hh_l0"
free = Reader()
with torch.no_grad():
    free.gates().copy_((Stiefel**3).random(3 * HIDDEN, HIDDEN, dtype=F64))
riemannian = constrain(copy.deepcopy(free), GATES, Stiefel**3, Riemannian())
moving = constrain(copy.deepcopy(free), GATES, Stiefel**3, Trivialization(rebase_every=1))
fixed = constrain(copy.deepcopy(free), GATES, Stiefel**3, Trivialization())

# %%
# They begin with equal weights, and see the same batches in the same order.

Models = dict[str, tuple[Reader, torch.optim.Optimizer]]


def train(models: Models, epochs: int, name: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Losses of each model, step by step, and the seconds that each step took."""
    losses: dict[str, list[float]] = {key: [] for key in models}
    seconds: dict[str, list[float]] = {key: [] for key in models}
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) for _, optimizer in models.values()]
    order = torch.Generator().manual_seed(0)
    for _ in tqdm(range(epochs), desc=name, unit="epoch"):
        for batch in training[torch.randperm(len(training), generator=order)].split(BATCH):
            for key, (model, optimizer) in models.items():
                begin = time.perf_counter()
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(rows[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                seconds[key].append(time.perf_counter() - begin)
                losses[key].append(loss.item())
        for schedule in schedules:
            schedule.step()
    return losses, seconds


def accuracy(model: Reader) -> float:
    with torch.no_grad():
        right: Tensor = model(rows[test]).argmax(1) == labels[test]
    return right.double().mean().item()


# %%
# Gradient descent: one path
# --------------------------

SGD_RATE = 0.3
sgd, _ = train(
    {
        "Riemannian": (riemannian, RiemannianSGD(riemannian, SGD_RATE)),
        "trivialized, base moves": (moving, torch.optim.SGD(moving.parameters(), SGD_RATE)),
        "trivialized, base stays": (fixed, torch.optim.SGD(fixed.parameters(), SGD_RATE)),
    },
    epochs=8,
    name="gradient descent",
)
travelled = float((riemannian.gates() - free.gates()).norm())
apart = {
    "moves": float((riemannian.gates() - moving.gates()).norm()),
    "stays": float((riemannian.gates() - fixed.gates()).norm()),
}
print(f"{len(sgd['Riemannian'])} steps: the gates went {travelled:.2f} from where they started")
for base, distance in apart.items():
    print(f"the two engines are {distance:.0e} apart where the base {base}")

# %%
# Adam: what a rate means
# -----------------------
#
# Adam divides each number of a gradient by its usual size, so that each of the 64 x 64 coordinates of a gate moves by
# about the rate. RiemannianAdam has one size for each gate, the mean over its degrees of freedom, so that one
# rate serves both.

RATE = 1e-2
riemannian = constrain(copy.deepcopy(free), GATES, Stiefel**3, Riemannian())
fixed = constrain(copy.deepcopy(free), GATES, Stiefel**3)
start = copy.deepcopy(free)
models: Models = {
    "free": (start, torch.optim.Adam(start.parameters(), RATE)),
    "trivialized": (fixed, torch.optim.Adam(fixed.parameters(), RATE)),
    "Riemannian": (riemannian, RiemannianAdam(riemannian, RATE)),
}
adam, seconds = train(models, epochs=15, name="Adam")

# %%
# What differs
# ------------
#
# Time is that of a whole step, forward, backward and update, as a ratio to the free model: small matrices and short
# sequences, as here, are where a constraint costs most. State is what the optimizer remembers for the gates.

accuracies = {name: accuracy(model) for name, (model, _) in models.items()}
usual = torch.tensor(seconds["free"]).median()
for name, (model, optimizer) in models.items():
    weight = model.gates().view(3, HIDDEN, HIDDEN)
    drift = float((weight.mT @ weight - torch.eye(HIDDEN)).abs().max())
    held = [p for key, p in model.named_parameters() if "weight_hh_l0" in key]
    state = sum(value.numel() for key, value in optimizer.state[held[0]].items() if key != "step")
    print(f"{name:12} test accuracy {accuracies[name]:.1%}, |Q'Q - I| {drift:.0e}")
    print(f"{'':12} time of a step {torch.tensor(seconds[name]).median() / usual:.2f}, numbers of state {state}")
    print(f"{'':12} keys {', '.join(key for key in model.state_dict() if 'weight_hh_l0' in key)}")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for name, color, style in zip(sgd, ("#009e73", "#e69f00", "#0072b2"), ("-", "--", ":"), strict=True):
    left.plot(sgd[name], color=color, linestyle=style, label=name)
for name, color in (("free", "#6b6b6b"), ("trivialized", "#0072b2"), ("Riemannian", "#009e73")):
    right.plot(adam[name], color=color, label=name, linewidth=0.8)
left.set(xlabel="step", ylabel="cross-entropy", title="Gradient descent: one path")
right.set(xlabel="step", yscale="log", title="Adam: alike, at one rate")
left.legend(frameon=False)
right.legend(frameon=False)
plt.show()

# %%
# The known answer: one path by gradient descent, and both engines end as well as each other with Adam.

assert travelled > 0.1, "the gates did not move, so that there was nothing to compare"
assert apart["moves"] < 1e-9, "the engines took different paths"
assert abs(accuracies["trivialized"] - accuracies["Riemannian"]) < 0.03, "one engine ended behind the other"
assert min(accuracies["trivialized"], accuracies["Riemannian"]) > 0.9, "an engine did not learn; chance is 10 %"
