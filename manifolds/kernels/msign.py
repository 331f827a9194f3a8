"""msign(A) = W sign(S) V^H for A = W S V^H: of all B with singular values up to 1, one with the largest Re tr(A^H B).

Singular values that are rounding of the largest are zero, and so is msign along them. No derivatives.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

Matrices = Inexact[Tensor, "*batch n p"]
Square = Inexact[Tensor, "*batch n n"]

QUINTICS = (
    (8.470328803848073, -25.108074706661885, 18.62927559911802),
    (4.1828341832939415, -3.108701109889241, 0.5806066813500491),
    (3.9618572789615976, -2.954063746359376, 0.5629761179538959),
    (3.28658621702796, -2.464720134531282, 0.5073576938614548),
    (2.273749994434039, -1.64466036790807, 0.41619092749788655),
    (1.888716197351826, -1.2651572253385939, 0.3765189255574871),
    (1.8750008858359646, -1.2500009842448887, 0.37500009840925475),
)
"""a, b, c of a s + b s^3 + c s^5: of all, the composition that is nearest to 1 on [1e-3, 1], each the best there is on
what the one before leaves; see the source. It is 1 to 5e-10 on [1e-3, 1], and between 0 and 1 on [0, 1e-3]."""


def msign(a: Matrices) -> Matrices:
    """By the singular value decomposition on CPU, to rounding; elsewhere `msign_by_products`."""
    if on_accelerator(a):
        return msign_by_products(a)
    w, s, vh = torch.linalg.svd(a, full_matrices=False)
    return (w * _is_more_than_rounding(s, a).to(a.dtype).unsqueeze(-2)) @ vh  # type: ignore[no-any-return]


def msign_by_products(a: Matrices) -> Matrices:
    """By 7 steps of a quintic, three products each, after division by a bound of the largest singular value, which is
    at most p^(1/8) times it. Singular values above 1e-3 of that bound come out as 1 to rounding, smaller ones s as
    about min(1, s / 3e-4 of it).

    Source: Amsel, Persson, Musco & Gower, The Polar Express (2025), arXiv 2505.16932, theorem 3.1; the constants are
    computed from it.
    """
    if a.shape[-2] < a.shape[-1]:
        return msign_by_products(a.mH.contiguous()).mH
    tiny = torch.finfo(a.dtype).tiny
    y = a / a.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # so that no power over- or underflows
    for k, (one, three, five) in enumerate(QUINTICS):
        gram = y.mH @ y
        square = gram @ gram
        if k == 0:  # (sum of s^8)^(1/8)
            bound = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True).clamp_min(tiny).sqrt().sqrt()
            y, gram, square = y / bound, gram / bound.square(), square / bound.square().square()
        y = one * y + y @ (three * gram + five * square)
    return y


def msign_of_skew(a: Square, traceless: bool = False) -> Square:
    """msign of a skew(-Hermitian) matrix, which is skew. traceless: of all skew-Hermitian B of trace 0 with singular
    values up to 1, one with the largest Re tr(A^H B)."""
    if not a.is_complex() or on_accelerator(a):
        b = msign(a)
        b = (b - b.mH) / 2
        return b - b.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * _eye(b) if traceless else b
    # i A is Hermitian, and its decomposition half the work
    values, q = torch.linalg.eigh(1j * a)
    n = a.shape[-1]
    if traceless:  # the multiplier of the trace is a median
        values = values - (values[..., (n - 1) // 2] + values[..., n // 2]).unsqueeze(-1) / 2
        if n % 2:
            values[..., n // 2] = 0
    values = values.sign() * _is_more_than_rounding(values.abs(), a)
    return (q * (-1j * values).unsqueeze(-2)) @ q.mH  # type: ignore[no-any-return]


def on_accelerator(a: Tensor) -> bool:
    """Whether a decomposition is slow, and to look at values is to wait for them."""
    return not a.is_cpu


def _is_more_than_rounding(s: Tensor, a: Tensor) -> Tensor:
    return s > s.amax(-1, keepdim=True) * max(a.shape[-2:]) * torch.finfo(a.dtype).eps


def _eye(a: Square) -> Square:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
