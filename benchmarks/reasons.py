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
        "the coordinates here have singular values about 1, where the series needs most of its terms and squarings; "
        "nearer to the base, where training begins, it needs fewer."
    ),
}
