"""
The missing three fifths of a picture
=====================================

Question: how many entries of a matrix are enough to know all the others?

A matrix of rank r has only r (n + m - r) degrees of freedom. If not many more of its entries are seen, at random
places, the matrix is known all the same: it is the only one of this rank that agrees with them (Candes & Recht 2009).
To find it is a least-squares problem on the matrices U diag(s) V' of rank r, where U and V are orthonormal.

The task: a photograph of a flower that scikit-learn ships, of which two fifths of the pixels are seen. First the best
approximation of it by rank 10, which has a known answer. Then the photograph itself, which has none: its rank is full.

Answer: the matrix of rank 10 is found to twelve digits, from five entries for each degree of freedom. Of the
photograph, pixels that were never seen are predicted with an error of 36 %; a truncated singular value decomposition,
the usual quick way, has 48 %; the best matrix of the same rank, made with all the pixels known, has 30 %.
"""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import conv2d
from tqdm import tqdm

from constraints import LBFGS, TrustRegion, minimize
from constraints.solve import Solver
from manifolds import LowRank

torch.manual_seed(0)
F64 = torch.float64

# %%
# What is seen
# ------------
#
# Every second pixel of the grey picture, 214 x 320. Some more pixels, a twentieth, are kept to choose a rank by; all
# others are the test.

picture = torch.from_numpy(load_sample_image("flower.jpg")[::2, ::2].copy()).to(F64).mean(-1) / 255
shape = picture.shape
order = torch.randperm(picture.numel())
SHARE, KEPT = 0.4, 0.05
seen, validation, test = order.tensor_split([round(SHARE * len(order)), round((SHARE + KEPT) * len(order))])
picture -= picture.flatten()[seen].mean()
print(f"{tuple(shape)}, {len(seen)} pixels seen, {len(test)} to be predicted")


def error(found: Tensor, truth: Tensor, where: Tensor) -> float:
    """Relative, of the entries `where`."""
    return float((found - truth).flatten()[where].norm() / truth.flatten()[where].norm())


def nearest(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank, by its singular value decomposition (Eckart & Young 1936)."""
    found: Tensor = LowRank(rank).compose(**LowRank(rank).decompose(matrix))
    return found


# %%
# Least squares on matrices of low rank
# -------------------------------------
#
# ``LowRank(r)`` says which points make the matrix: ``parts`` names them and their manifolds, ``decompose`` finds them
# for a start, ``compose`` puts the matrix together. The start is the matrix with zeros for what is not seen, divided by
# the share that is seen, so that it is right on average: its r leading singular vectors. This alone is the usual quick
# way, and what comes out of it is compared with.
#
# One thing to know: u and v have entries of a set size and s has not. Dividing by the largest singular value makes all
# three move at one pace.


def spread(values: Tensor) -> Tensor:
    return torch.zeros(picture.numel(), dtype=F64).index_put((seen,), values / SHARE).view(shape)


def truncated(values: Tensor, rank: int) -> Tensor:
    return nearest(spread(values), rank)


def complete(values: Tensor, rank: int, solver: Solver, tol: float, steps: int) -> Tensor:
    low, scale = LowRank(rank), torch.linalg.matrix_norm(spread(values), ord=2)

    def loss(parts: dict[str, Tensor]) -> Tensor:
        off: Tensor = low.compose(**parts).flatten()[seen] - values / scale
        return off.square().sum() / SHARE

    kinds = {name: manifold for name, (manifold, _) in low.parts(shape).items()}
    start = low.decompose(spread(values) / scale)
    found = minimize(loss, start, kinds, solver=solver, tol=tol, max_steps=steps)
    whole: Tensor = low.compose(**found.x) * scale
    return whole


# %%
# A known answer
# --------------
#
# The best approximation of rank 10 stands in for the picture. Second derivatives give all the digits.

RANK = 10
exact = nearest(picture, RANK)
recovered = complete(exact.flatten()[seen], RANK, TrustRegion(), 1e-12, 300)
freedom = RANK * (sum(shape) - RANK)
exact_error = error(recovered, exact, test)
print(f"{len(seen) / freedom:.1f} entries for each degree of freedom: relative error {exact_error:.0e}")

# %%
# The photograph
# --------------
#
# A higher rank says more of the picture, and has more that must be learned from the same pixels. Past some rank the
# error on pixels that were not seen goes up again. Few steps are enough here: what is fitted is noise in the end.

ranks = (2, 4, 6, 8, 10, 13, 16)
values = picture.flatten()[seen]
ours, quick = {}, {}
for rank in tqdm(ranks, desc="ranks"):
    ours[rank] = complete(values, rank, LBFGS(), 1e-4, 150)
    quick[rank] = truncated(values, rank)


def chosen(found: dict[int, Tensor]) -> int:
    """The rank with the least error on the validation pixels."""
    return min(found, key=lambda rank: error(found[rank], picture, validation))


rank, quick_rank = chosen(ours), chosen(quick)
best = nearest(picture, rank)
found_error = error(ours[rank], picture, test)
quick_error = error(quick[quick_rank], picture, test)
best_error = error(best, picture, test)
print(f"least squares, rank {rank}: {found_error:.3f}")
print(f"truncated singular values, rank {quick_rank}: {quick_error:.3f}")
print(f"best of rank {rank}, if all pixels were known: {best_error:.3f}")

# %%
# That a picture has neighbours is not used: the rows and columns could be shuffled. Where they may be used, they say
# more: the mean of the pixels seen in a window of 3 x 3 is a fair prediction.

window, mask = torch.ones(1, 1, 3, 3, dtype=F64), spread(torch.ones_like(values))
sums, counts = (conv2d(image.view(1, 1, *shape), window, padding=1).view(shape) for image in (spread(values), mask))
print(f"means of neighbours: {error(sums / counts.clamp(min=1), picture, test):.3f}")

figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
hidden = torch.full((picture.numel(),), torch.nan, dtype=F64).index_put((seen,), values).view(shape)
shown = {"seen": hidden, "truncated": quick[quick_rank], "least squares": ours[rank]}
for axis, (name, image) in zip(axes, shown.items(), strict=False):
    axis.imshow(image.numpy(), cmap="gray", vmin=float(picture.min()), vmax=float(picture.max()))
    axis.set(title=name, xticks=[], yticks=[])
for name, images, color in (("truncated", quick, "#999999"), ("least squares", ours, "#0072b2")):
    axes[3].plot(ranks, [error(images[r], picture, test) for r in ranks], "o-", color=color, label=name)
axes[3].set(xlabel="rank", xticks=ranks, title="error on pixels not seen", ylim=(0, None))
axes[3].legend(frameon=False)
plt.show()

# %%
# The known answers. What is predicted is better than the quick way at the best rank of that, and not better than the
# best matrix of its rank is on the whole picture (Eckart & Young 1936).

assert exact_error < 1e-8, "the matrix of rank 10 was not found"
assert found_error < 0.8 * quick_error, "no better than a truncated singular value decomposition"
assert (ours[rank] - picture).norm() >= (best - picture).norm(), "better than the best matrix of its rank"
