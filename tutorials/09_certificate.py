"""
An answer with a certificate
============================

Question: when is a problem on a manifold solved, and how is it known?

An optimizer for training stops when its budget does. A subspace, a rotation, a mean has an answer, and two things say
that it was found. The *gradient norm*: where it is zero no small step helps. And, for some problems, a *certificate*
that no other point is better, however far. ``minimize`` goes until the first holds; the second is a line of linear
algebra.

================================  =====================  ==========================================
problem                           manifold               known answer
================================  =====================  ==========================================
three directions of 500           ``Stiefel``            eigenvectors
one rotation between two clouds   ``SpecialOrthogonal``  a singular value decomposition
ten matrices made diagonal        ``Orthogonal``         the basis that they were made in
mean of 1000 rotations            ``SpecialOrthogonal``  a singular value decomposition
the largest cut of a graph        ``Oblique``            certified by the eigenvalues of a matrix
================================  =====================  ==========================================

Answer: after 10 to 20 steps of a trust region the gradient is zero to ten digits, and each of the answers is the known
one. With second derivatives the number of right digits doubles at every step, at the end.
"""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from tqdm import tqdm

from constraints import LBFGS, ConjugateGradient, GradientDescent, TrustRegion, check_hessian, minimize
from manifolds import Oblique, Orthogonal, SpecialOrthogonal, Stiefel

torch.manual_seed(0)
F64 = torch.float64

# %%
# Four problems, four lines each
# ------------------------------
#
# The leading subspace of a covariance of 500 variables. What is minimized takes a point and returns a number; the shape
# in place of a start asks for a random one.

data = torch.randn(2000, 500, dtype=F64) * 0.99 ** torch.arange(500)
covariance = data.T @ data / len(data)

subspace = minimize(lambda x: -(x * (covariance @ x)).sum(), (500, 3), Stiefel, dtype=F64)
print(f"subspace: {subspace.reason} {subspace.steps} steps")

# %%
# Procrustes: the rotation that turns one cloud into another.

cloud = torch.randn(100, 10, dtype=F64)
turned = cloud @ SpecialOrthogonal().random(10, 10, dtype=F64) + 0.1 * torch.randn(100, 10, dtype=F64)

rotation = minimize(lambda x: (cloud @ x - turned).square().sum(), (10, 10), SpecialOrthogonal, dtype=F64, starts=4)
print(f"rotation: {rotation.reason} Values from four starts: {rotation.values_of_starts}")

# %%
# Joint diagonalization: one basis in which ten matrices are diagonal. A point of O(n) never changes the sign of its
# determinant on the way; here both signs are as good, for a column of the basis may be turned around.

basis = Orthogonal().random(8, 8, dtype=F64)
matrices = basis @ torch.diag_embed(torch.randn(10, 8, dtype=F64)) @ basis.T


def off_diagonal(x: Tensor) -> Tensor:
    return matrices.square().sum() - (x.T @ matrices @ x).diagonal(dim1=1, dim2=2).square().sum()


joint = minimize(off_diagonal, (8, 8), Orthogonal, dtype=F64, starts=4)
print(f"joint diagonalization: {joint.reason} {joint.value:.0e} is left off the diagonals")

# %%
# The mean of 1000 rotations, in the sense of the nearest one in the squared distance of matrices.

small = 0.5 * torch.randn(1000, 3, 3, dtype=F64)
rotations = SpecialOrthogonal().random(3, 3, dtype=F64) @ torch.linalg.matrix_exp(small - small.mT)

mean = minimize(lambda x: (x - rotations).square().sum((1, 2)).mean(), (3, 3), SpecialOrthogonal, dtype=F64)
print(f"mean: {mean.reason} {mean.steps} steps")

# %%
# Right derivatives
# -----------------
#
# A gradient that is zero says something only if it is the gradient. Along a tangent direction the error of the
# second-order Taylor model must fall with the third power of the length; ``check_hessian`` measures that power.

checked = check_hessian(off_diagonal, Orthogonal().random(8, 8, dtype=F64), Orthogonal)
print(checked)

# %%
# A certificate
# -------------
#
# A largest cut of a graph puts the nodes on two sides so that as many edges as possible go across. Relaxed, each node
# is a unit vector, and edges push their ends apart: a matrix X with unit columns that minimizes tr(X'XA) (Goemans &
# Williamson 1995; Burer & Monteiro 2003). Nothing about this problem is convex. But let S = A - diag(X'XA). If S has no
# negative eigenvalue, then no matrix of any size is better, as tr(Z'ZS) is at least 0 for every Z, and is 0 at X
# (Boumal, Voroninski & Bandeira 2016).

NODES = 60
edges = torch.triu((torch.rand(NODES, NODES) < 0.15).to(F64), 1)
adjacency = edges + edges.T

cut = minimize(lambda x: (x * (x @ adjacency)).sum(), (12, NODES), Oblique, dtype=F64, tol=1e-9)
dual = torch.diag(-(cut.x * (cut.x @ adjacency)).sum(0)) + adjacency
smallest = torch.linalg.eigvalsh(dual)[0].item()
bound = (adjacency.sum().item() - cut.value) / 4
sides = torch.sign(torch.randn(1000, 12, dtype=F64) @ cut.x)
rounded = max(((adjacency.sum() - s @ adjacency @ s) / 4).item() for s in sides)
print(
    f"cut: {cut.reason} Least eigenvalue {smallest:.0e}: no cut has more than {bound:.2f} edges; one has {rounded:.0f}"
)

# %%
# How they get there
# ------------------
#
# The leading subspace again, from one start, by each of the solvers.

start = Stiefel().random(500, 3, dtype=F64)
solvers = [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
found = []
for solver, color in zip(tqdm(solvers, desc="solvers"), ("#0072b2", "#009e73", "#d55e00", "#cc79a7"), strict=True):
    result = minimize(lambda x: -(x * (covariance @ x)).sum(), start, Stiefel, solver=solver, tol=1e-9, max_steps=300)
    result.history.plot(left, label=str(solver), color=color)
    found.append(result)
left.set(title="500 variables, 3 directions", ylim=(1e-10, None))
left.legend(frameon=False)
checked.plot(right).set(title="Second derivatives are right")
plt.show()

# %%
# The known answers.

eigenvalues = torch.linalg.eigvalsh(covariance)
w, s, vh = torch.linalg.svd(cloud.T @ turned)
w[:, -1] *= torch.linalg.det(w @ vh).sign()
u, _, vt = torch.linalg.svd(rotations.mean(0))
u[:, -1] *= torch.linalg.det(u @ vt).sign()

assert all(result.converged for result in (subspace, rotation, joint, mean, cut, *found)), "a solver did not converge"
assert abs(subspace.value + eigenvalues[-3:].sum().item()) < 1e-9, "not the leading subspace"
assert (rotation.x - w @ vh).abs().max() < 1e-6, "not the rotation of the singular value decomposition"
assert joint.value < 1e-9, "the matrices are not diagonal"
assert (mean.x - u @ vt).abs().max() < 1e-6, "not the mean of the singular value decomposition"
assert checked.ok, "the second derivatives are wrong"
assert smallest > -1e-6, "the cut is not certified"
assert rounded > 0.878 * bound, "a worse cut than is promised"
