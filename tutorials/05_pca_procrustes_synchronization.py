"""
PCA, Procrustes and rotation synchronization
============================================

Question: does ``minimize`` find the optimum where linear algebra says what it is?

Three problems that are not neural networks: their unknowns are plain tensors, and nothing is trained. What is to be
made small is a function of the unknown, and its manifold says where that lies::

    minimize(f, shape, Stiefel)

================  ==============================  =====================================================
problem           unknown                         known answer
================  ==============================  =====================================================
PCA               4 orthonormal axes of R^64      eigenvectors of the covariance
Procrustes        one rotation of R^6             from a singular value decomposition
synchronization   60 rotations of R^3, at once    certified by the eigenvalues of a matrix
================  ==============================  =====================================================

Answer: yes, each to ten digits or more, in 10 to 30 steps and without a learning rate.
"""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from constraints import LBFGS, minimize
from constraints.solve import Point
from manifolds import SpecialOrthogonal, Stiefel

torch.manual_seed(0)
F64 = torch.float64

digits = load_digits()
data = torch.tensor(digits.data, dtype=F64)
data = data - data.mean(0)
variances, vectors = torch.linalg.eigh(data.T @ data / len(data))
gaps: dict[str, list[float]] = {}

# %%
# PCA
# ---
#
# The axes that hold most of the variance of the handwritten digits, tr(X'CX). To tell the axes apart, and not only the
# space that they span, the k-th has a weight of its own: tr(X'CX N) with N = diag(4, 3, 2, 1) is largest where the
# columns of X are the first eigenvectors, in this order (Brockett 1991). A shape in
# place of a start asks for a random one; derivatives come from autograd.

weights = torch.tensor([4, 3, 2, 1], dtype=F64)
covariance = data.T @ data / len(data)
best = float((variances.flip(0)[:4] * weights).sum())


def missing(x: Tensor) -> Tensor:
    return 1 - ((x.T @ covariance @ x).diagonal() * weights).sum() / best


found = minimize(missing, (64, 4), Stiefel, dtype=F64, tol=1e-8)
axes = found.x
gaps["PCA"] = found.history.value
print(f"PCA: {found.reason} {found.steps} steps")

cosines = (axes * vectors.flip(1)[:, :4]).sum(0).abs()
print(f"PCA: 1 - |cosine| to the eigenvectors at most {float((1 - cosines).max()):.0e}")

# %%
# Procrustes
# ----------
#
# The digits in their first 6 principal coordinates, and the same cloud turned by an unknown rotation and blurred. The
# rotation that turns one into the other best, min ||A Q - B||, is W diag(1, ..., 1, det WV') V' where A'B = W S V'
# (Schoenemann 1966; Kabsch 1976). ``SpecialOrthogonal`` holds rotations only, never reflections.

a = data @ vectors[:, -6:]
b = a @ SpecialOrthogonal().random(6, 6, dtype=F64) + 5 * torch.randn_like(a)
w, _, vh = torch.linalg.svd(a.T @ b)
w[:, -1] *= torch.linalg.det(w @ vh).sign()
closed = w @ vh
least = float((a @ closed - b).square().mean())

found = minimize(lambda x: (a @ x - b).square().mean(), (6, 6), SpecialOrthogonal, dtype=F64, tol=1e-8)
rotation = found.x
gaps["Procrustes"] = [value / least - 1 for value in found.history.value]
print(f"Procrustes: {found.reason} {found.steps} steps")

apart = float((rotation - closed).norm())
print(f"Procrustes: {apart:.0e} from the closed form, determinant {float(torch.linalg.det(rotation)):.12f}")

# %%
# Synchronization
# ---------------
#
# 60 cameras, of which some pairs know how they are turned against each other, R_ij = R_i R_j' up to noise. Which
# rotations agree with most of it? All of them are one tensor, (60, 3, 3): the first axis is a batch axis, and each
# rotation is a point; all of them move as one, by L-BFGS, with gradients only.

CAMERAS = 60
truth = SpecialOrthogonal().random(CAMERAS, 3, 3, dtype=F64)
pairs = torch.combinations(torch.arange(CAMERAS))
i, j = pairs[torch.rand(len(pairs)) < 0.3].T
small = 0.1 * torch.randn(len(i), 3, 3, dtype=F64)
noise = torch.linalg.matrix_exp(small - small.mT)
measured = truth[i] @ noise @ truth[j].mT


def disagreement(r: Tensor) -> Tensor:
    """Mean |R_i - R_ij R_j|^2."""
    residual: Tensor = r[i] - measured @ r[j]
    return residual.square().sum((1, 2)).mean()


with tqdm(desc="synchronization", unit="step") as bar:

    def show(point: Point) -> None:
        bar.update(point.step - bar.n)

    shape = (CAMERAS, 3, 3)
    found = minimize(disagreement, shape, SpecialOrthogonal, solver=LBFGS(), dtype=F64, tol=1e-8, callback=show)
print(f"synchronization: {found.reason} {found.steps} steps")

# %%
# There is no formula for the best rotations, but a certificate that no others are better. Let G hold the measured R_ij
# in blocks of 3 x 3, and D on its diagonal the blocks sum_j R_ij R_j R_i'. If D - G has no negative eigenvalue, then
# the disagreement is the smallest possible, over all rotations and beyond (Rosen et al. 2019). Its three smallest
# eigenvalues are zero, as turning all cameras together changes nothing.

cameras, costs = found.x, found.history.value
blocks = torch.zeros(CAMERAS, CAMERAS, 3, 3, dtype=F64)
blocks[i, j], blocks[j, i] = measured, measured.mT
seen = torch.einsum("ijab,jbc->iac", blocks, cameras) @ cameras.mT
certificate = torch.block_diag(*((seen + seen.mT) / 2)) - blocks.permute(0, 2, 1, 3).reshape(3 * CAMERAS, 3 * CAMERAS)
smallest = torch.linalg.eigvalsh(certificate)[:4]
gaps["synchronization"] = [cost / costs[-1] - 1 for cost in costs[:-1]]
print(f"synchronization: disagreement {costs[-1]:.6f}, of the true rotations {float(disagreement(truth)):.6f}")
print(f"certificate: eigenvalues {', '.join(f'{s:.0e}' for s in smallest.tolist())}, ...")

# %%
# How they got there
# ------------------
#
# Excess over the known optimum, relative to it.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for name, color in zip(gaps, ("#0072b2", "#009e73", "#d55e00"), strict=True):
    left.plot(gaps[name], color=color, label=name)
left.set(xlabel="step", ylabel="excess over the optimum", yscale="log", ylim=(1e-15, None), title="Three known answers")
left.legend(frameon=False)
plane = data @ axes[:, :2]
points = right.scatter(*plane.T, c=digits.target, cmap="tab10", s=8)
right.set(xlabel="first axis", ylabel="second axis", title="The digits in the plane that was found")
figure.colorbar(points, ticks=range(10), label="digit")
plt.show()

# %%
# The known answers.

assert (1 - cosines).max() < 1e-6, "the columns are not the first eigenvectors"
assert apart < 1e-6, "the rotation is not that of the singular value decomposition"
assert smallest[0] > -1e-6, "the rotations are not the best ones"
assert smallest[3] > 0.1, "the best rotations are not determined up to a common one"
assert costs[-1] < disagreement(truth), "the true rotations agree better with what was measured"
