"""Why a row misses its target, where it does, and what was tried; shown with the row only then."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "step-20000x3": (
        "one batched product of 3 x 3 matrices (u) takes as long as Adam's whole step, and a step on the manifold "
        "needs three, with a few passes between them."
    ),
    "step-4096x8": (
        "one batched product of 8 x 8 matrices (u) takes half of Adam's whole step, and a step on the manifold needs "
        "three, with a few passes between them."
    ),
    "map-exp": (
        "at coordinates with singular values about 1 the series and its derivative take 22 products of n x n matrices, "
        "and the passes between them a quarter as long again; nearer to the base, where training begins, fewer do."
    ),
}
