"""
A manifold of your own
======================

Question: how does a set of weights that is not in the library become a constraint that trains?

Ours are the filters that lose nothing. A circular convolution multiplies the spectrum of an image by the spectrum of
its filter x; it keeps all lengths, and is an orthogonal map, where

.. math:: |\\hat x_k| = 1 \\quad \\text{for every frequency } k.

Engineers call such filters all-pass. Shifts are of this kind, and so is every change of phases. There are n such
equations for n numbers, but half of them repeat the others, so that these filters form a smooth curve, or surface, in
the space of all filters.

The task: real handwritten digits, and the same digits shifted around a torus and spoiled by noise. Which filter did it?

Answer: four short methods make the manifold, ``check_manifold`` finds nothing broken, and both engines train a module
to the filter that has a closed form: the phase correlation by which images are registered (Kuglin & Hines 1975).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from constraints import Riemannian, constrain, report
from constraints.optim import RiemannianAdam
from manifolds import NearestPointManifold
from manifolds.testing import ConformanceError, check_manifold

torch.manual_seed(0)

# %%
# Four things
# -----------
#
# ``ndim``: how many axes one point has. ``nearest``: the point nearest to a given tensor; the Fourier transform keeps
# distances (up to one factor), so this is the nearest number of modulus 1, frequency by frequency. ``project``: the
# tangent vector nearest to a given one; the circle's tangent at z is the line of i z. ``dim``: the degrees of freedom.
# Of a real filter, half of the phases are free: that of -k is minus that of k, and where k = -k it is 0 or 180 degrees.
# ``dim_of_complex``, for complex points, is twice that unless it is written; of a complex filter all phases are free.


@dataclass(frozen=True)
class AllPass(NearestPointManifold):
    """Filters (..., h, w) with |fft2(x)| = 1; T_x = {v : Re(conj(fft2 x) fft2 v) = 0 at every frequency}."""

    ndim = 2
    constant_norm = True

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """The inverse transform of i x^ Im(conj(x^) a^)."""
        spectrum = torch.fft.fft2(x)
        return _inverse(1j * spectrum * (spectrum.conj() * torch.fft.fft2(a)).imag, x)

    def nearest(self, x: Tensor) -> Tensor:
        """The inverse transform of x^ / |x^|. Raises ValueError where a frequency is missing."""
        spectrum = torch.fft.fft2(x)
        if (spectrum == 0).any():
            raise ValueError(f"a filter without some frequency has no nearest AllPass one; got shape {tuple(x.shape)}.")
        return _inverse(spectrum / spectrum.abs(), x)

    def dim(self, shape: Sequence[int]) -> int:
        """(h w - s) / 2 for each filter, s the number of frequencies k = -k."""
        if len(shape) < 2:
            raise ValueError(f"AllPass holds filters (..., h, w); got shape {tuple(shape)}.")
        h, w = shape[-2:]
        return math.prod(shape[:-2]) * (h * w - (2 - h % 2) * (2 - w % 2)) // 2

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """h w: the phases of a complex filter are all free."""
        return math.prod(shape)


def _inverse(spectrum: Tensor, like: Tensor) -> Tensor:
    x: Tensor = torch.fft.ifft2(spectrum)
    return x if like.is_complex() else x.real


# %%
# Is it one?
# ----------
#
# ``check_manifold`` states the contract as theorems and tries each of them, in four dtypes. It is silent if all hold.

check_manifold(AllPass(), (7, 7))
check_manifold(AllPass, (3, 4, 6))  # three filters, of even sizes

# %%
# Had we forgotten the conjugate, it would say so.


@dataclass(frozen=True)
class Wrong(AllPass):
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        return _inverse(1j * spectrum * (spectrum * torch.fft.fft2(a)).imag, x)


try:
    check_manifold(Wrong(), (7, 7))
except ConformanceError as error:
    print(error)

# %%
# It is a manifold like any other now: its points are drawn, moved, measured and multiplied.

x = AllPass().random(7, 7)
v = AllPass().project(x, torch.randn(7, 7))
y = AllPass().retract(x, v)
print(f"{AllPass().dim((7, 7))} degrees of freedom of 49; residual {AllPass().residual(y):.0e} after a move")
print(f"{AllPass**2} on two filters: {(AllPass**2).residual((AllPass**2).random(2 * 7, 7)):.0e}")

# %%
# The data
# --------
#
# The digits, cut to 7 x 7 pixels: of odd size, where only one frequency equals its own negative, so that all filters of
# one mean are connected. Their copies are shifted by 2 rows and 3 columns, and as loud as the noise.

images = torch.tensor(load_digits().images[:, :7, :7], dtype=torch.float32)
images = (images - images.mean(0)) / (images.std(0) + 0.5)
SHIFT = (2, 3)
shifted = images.roll(SHIFT, (1, 2)) + images.std() * torch.randn_like(images)


class Filter(nn.Module):
    """A circular convolution, (batch, 7, 7) to (batch, 7, 7), that starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7, 7))
        with torch.no_grad():
            self.weight[0, 0] = 1

    def forward(self, image: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(image) * torch.fft.fft2(self.weight))
        return filtered.real


# %%
# Both engines
# ------------
#
# The shift is far from the identity, and one base reaches only the filters around it: a retraction turns no phase by
# more than 90 degrees. So the base follows the weight, by itself.

EPOCHS, BATCH = 12, 64
trivialized = constrain(Filter(), "weight", AllPass)
riemannian = constrain(Filter(), "weight", AllPass, Riemannian())
runs: dict[str, tuple[Filter, torch.optim.Optimizer]] = {
    "trivialized": (trivialized, torch.optim.Adam(trivialized.parameters(), 2e-2)),
    "Riemannian": (riemannian, RiemannianAdam(riemannian, 1e-1)),
}
schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS) for _, optimizer in runs.values()]

# %%
# The known answer: the error is a sum over frequencies, in each of which the best phase is that of the cross-spectrum
# of the two sets of images.

a, b = torch.fft.fft2(images), torch.fft.fft2(shifted)
correlation = torch.fft.ifft2(torch.sgn((a.conj() * b).sum(0))).real

distances: dict[str, list[float]] = {name: [] for name in runs}
for _ in tqdm(range(EPOCHS), desc="training", unit="epoch"):
    for batch in torch.randperm(len(images)).split(BATCH):
        for name, (model, optimizer) in runs.items():
            optimizer.zero_grad()
            nn.functional.mse_loss(model(images[batch]), shifted[batch]).backward()
            optimizer.step()
            distances[name].append((model.weight.detach() - correlation).norm().item())
    for schedule in schedules:
        schedule.step()

# %%
# What they found
# ---------------
#
# One pixel is lit, the shift; what the noise adds to the others is too small to be seen.

figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", width_ratios=(1.5, 1, 1, 1))
for name, color in (("trivialized", "#0072b2"), ("Riemannian", "#009e73")):
    axes[0].plot(distances[name], color=color, label=name)
axes[0].set(xlabel="step", yscale="log", title="distance to the closed form")
axes[0].legend(frameon=False)
pictures = {name: model.weight.detach() for name, (model, _) in runs.items()} | {"phase correlation": correlation}
for axis, (name, picture) in zip(axes[1:], pictures.items(), strict=True):
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(title=name, xlabel="columns", ylabel="rows")
plt.show()

print(report(trivialized))
print(report(riemannian))
for name, (model, _) in runs.items():
    weight = model.weight.detach()
    row, column = divmod(int(weight.argmax()), 7)
    print(f"{name}: shift ({row}, {column}), {distances[name][-1]:.1e} from the phase correlation")
    assert (row, column) == SHIFT, f"{name} found another shift"
    assert distances[name][-1] < 0.05, f"{name} is not at the phase correlation"
    assert AllPass().residual(weight) < 1e-5, f"the {name} filter lost or gained a frequency"
