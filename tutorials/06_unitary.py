"""
Unitary weights: the ground state of a quantum magnet
=====================================================

Question: can complex weights be held unitary, so that a quantum circuit is trained like a network?

A chain of 4 spins in a transverse field, at its critical point, has the energy

.. math:: H = - \\sum_{i=1}^{3} Z_i Z_{i+1} - \\sum_{i=1}^{4} X_i ,

a Hermitian matrix of 16 x 16. A circuit of two-spin gates, each a unitary matrix of 4 x 4, turns the state with all
spins up into another state. Which gates give the state of lowest energy? This is the variational eigensolver of quantum
computing (Peruzzo et al. 2014), here with the gates themselves as weights: a tensor of shape (gates, 4, 4), complex, in
which each gate is a point of U(4).

Answer: both engines find it, and ``minimize`` does in a fraction of the steps. The energy agrees to eight digits with
the smallest eigenvalue of H, and with the formula that is known for this chain, 1 - 1 / sin(pi / 18) (Pfeuty 1970).
"""

from __future__ import annotations

import math

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from tqdm import tqdm

from constraints import LBFGS, Riemannian, constrain, minimize, report
from constraints.optim import RiemannianAdam
from manifolds import Orthogonal

SPINS, LAYERS, STEPS = 4, 5, 400
torch.manual_seed(0)

# %%
# The exact answer
# ----------------


def on_spins(matrix: Tensor, first: int) -> Tensor:
    """The matrix on one or more neighbouring spins, from the first one on, as a matrix on the whole chain."""
    width = int(math.log2(matrix.shape[0]))
    before, after = torch.eye(2**first), torch.eye(2 ** (SPINS - first - width))
    return torch.kron(torch.kron(before, matrix), after)


X, Z = torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([[1.0, 0], [0, -1]])
terms = [on_spins(torch.kron(Z, Z), i) for i in range(SPINS - 1)] + [on_spins(X, i) for i in range(SPINS)]
hamiltonian = -torch.stack(terms).sum(0).to(torch.complex128)
exact = float(torch.linalg.eigvalsh(hamiltonian)[0])
formula = 1 - 1 / math.sin(math.pi / (4 * SPINS + 2))
print(f"lowest eigenvalue {exact:.10f}, formula {formula:.10f}")

# %%
# The circuit
# -----------
#
# Even layers couple the spins (0, 1) and (2, 3), odd ones (1, 2): a brick wall. A gate acts on two of the four axes
# of the state, wherever they are; nothing of 16 x 16 is made.


class Circuit(nn.Module):
    """Two-spin gates in a brick wall, (gates, 4, 4); its value is the energy of the state they make."""

    def __init__(self) -> None:
        super().__init__()
        self.first = [i for layer in range(LAYERS) for i in range(layer % 2, SPINS - 1, 2)]
        self.gates = nn.Parameter(torch.zeros(len(self.first), 4, 4, dtype=torch.complex128))

    def forward(self) -> Tensor:
        state = torch.zeros(2**SPINS, dtype=torch.complex128)
        state[0] = 1
        for gate, i in zip(self.gates, self.first, strict=True):
            state = (gate @ state.view(2**i, 4, -1)).flatten()
        return torch.vdot(state, hamiltonian @ state).real


# %%
# The gates are random to begin with. Axes before the last two are batch axes: one constraint holds every gate.
# ``Orthogonal`` is O(n) for real tensors and U(n) for complex ones.

trivialized = constrain(Circuit(), "gates", Orthogonal, init="haar")
start = trivialized.gates.detach()
riemannian = constrain(Circuit(), "gates", Orthogonal, Riemannian(), init=start)
print(report(riemannian))

# %%
# One rate serves both engines.

runs: dict[str, tuple[Circuit, torch.optim.Optimizer]] = {
    "trivialized": (trivialized, torch.optim.Adam(trivialized.parameters(), 5e-2)),
    "Riemannian": (riemannian, RiemannianAdam(riemannian, 5e-2)),
}
schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) for _, optimizer in runs.values()]
energies: dict[str, list[float]] = {name: [] for name in runs}
for _ in tqdm(range(STEPS), desc="training", unit="step"):
    for name, (circuit, optimizer) in runs.items():
        optimizer.zero_grad()
        energy = circuit()
        energy.backward()
        optimizer.step()
        energies[name].append(energy.item())
    for schedule in schedules:
        schedule.step()

# %%
# The gates of a small circuit are also a problem with an answer: ``minimize`` moves the model as one point, by L-BFGS,
# until the gradient vanishes, from the same start and without a rate.

solved = constrain(Circuit(), "gates", Orthogonal, Riemannian(), init=start)
found = minimize(solved, solved, solver=LBFGS(), tol=1e-6)
energies["solved"] = found.history.value
print(f"minimize: {found.reason} {found.steps} steps")

# %%
# The energy never falls below the exact one, as it is an expectation in a state of norm 1: unitary gates keep the norm.

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, color in (("trivialized", "#0072b2"), ("Riemannian", "#009e73"), ("solved", "#d55e00")):
    axis.plot([energy - exact for energy in energies[name]], color=color, label=name)
axis.set(xlabel="step", ylabel="energy above the ground state", yscale="log", title="A circuit learns the ground state")
axis.legend(frameon=False)
plt.show()

assert abs(exact - formula) < 1e-12
assert found.converged, found.reason
for name, circuit in (*((name, circuit) for name, (circuit, _) in runs.items()), ("solved", solved)):
    gates = circuit.gates.detach()
    drift = float((gates.mH @ gates - torch.eye(4)).abs().max())
    print(f"{name:12} energy {energies[name][-1]:.10f}, {energies[name][-1] - exact:.0e} above; |U*U - I| {drift:.0e}")
    assert -1e-12 < energies[name][-1] - exact < 1e-7, f"{name} did not reach the ground state"
    assert drift < 1e-13, f"a gate of the {name} circuit is not unitary"
