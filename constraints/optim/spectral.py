"""What `RiemannianMuon` is made of: directions of steepest descent in the spectral norm, and scales of a step.

A direction is a function (x, m) of tall points X with orthonormal columns and tangent M, (*batch, n, p), and gives A of
their shape with |A|_2 <= 1, against which the step goes. A scale is a function (n, p) -> number, by which lr is
multiplied. Functions of your own do as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from manifolds.kernels import dual as _dual
from manifolds.kernels.msign import msign, msign_by_products

__all__ = ["Quintic", "dual", "match_rms_adamw", "msign", "msign_by_products", "original", "spel", "unit"]

Points = Inexact[Tensor, "*batch n p"]


def spel(x: Points, m: Points) -> Points:
    """msign(M): the steepest direction of the surrounding space, to whose end the step takes the nearest point.

    Source: Yang & Lai, Manifold constrained steepest descent (2026), arXiv 2601.21487, algorithm 2.
    """
    return msign(m)


def dual(x: Points, m: Points) -> Points:
    """argmax of Re tr(M^H A) over tangent A with |A|_2 <= 1, to 2e-7 of the maximum; of norm 1, tangent to rounding.

    Some 10 to 20 singular value decompositions of 2p x p matrices, 30 to 60 for real X of odd n < 2p: for p of some
    hundreds, many times `spel`.
    Source: Bernstein, Modular manifolds (2025).
    """
    return _dual.dual(x, m)


def unit(n: int, p: int) -> float:
    """1: a step has the spectral norm lr."""
    return 1.0


def original(n: int, p: int) -> float:
    """sqrt(max(1, n / p)), n rows: the default of torch.optim.Muon. Source: Jordan, Muon (2024)."""
    return math.sqrt(max(1.0, n / p))


def match_rms_adamw(n: int, p: int) -> float:
    """0.2 sqrt(max(n, p)): the entries of a step have the root mean square 0.2 lr, as those of AdamW have about.

    So one lr serves matrices of all sizes and what AdamW moves. Source: Liu et al., Muon is scalable for LLM training
    (2025), arXiv 2502.16982, equation (4).
    """
    return 0.2 * math.sqrt(max(n, p))


@dataclass(frozen=True)
class Quintic:
    """The inexact msign of torch.optim.Muon, with its options: singular values of about 0.7 to 1.2, in bfloat16.

    Source: Jordan, Muon (2024).
    """

    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    steps: int = 5
    eps: float = 1e-7
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, a: Points) -> Points:
        """Odd quintics a Y + (b Y Y^H + c (Y Y^H)^2) Y of A / |A|."""
        if a.dim() > 2:
            return torch.stack([self(each) for each in a.flatten(0, -3)]).view(a.shape)
        one, three, five = self.coefficients
        is_tall = a.shape[0] > a.shape[1]
        y = a.to(self.dtype)
        y = y.mH if is_tall else y
        y = y / y.norm().clamp(min=self.eps)
        for _ in range(self.steps):
            gram = y @ y.mH
            y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=three, alpha=five), y, beta=one)
        return (y.mH if is_tall else y).to(a.dtype)
