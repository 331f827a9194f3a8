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
    "step-1024x64": (
        "products are too small here to hide what is between them: sums that see a write from outside and a gradient "
        "that is not finite, which POGO does not look for, and some forty calls of torch. In processor time of one "
        "thread the target is met."
    ),
    "step-64x64x64": (
        "three products and a dozen passes over memory, among them the sums that see a write from outside and a "
        "gradient that is not finite. In processor time of one thread the target is met. Working through "
        "the matrices in chunks that fit the cache was tried and gained nothing."
    ),
    "map-cayley": (
        "6.5u in all, most of it one LU factorization and its solves, against 8.7u of torch's. Near the base, where a "
        "series takes the place of LU, it is 2.5 times faster."
    ),
    "map-exp": (
        "at coordinates with singular values about 1 the polynomial and its derivative take 16 products of n x n "
        "matrices, down from 22 by shorter polynomials and a sharper bound of |A|. In processor time of one thread "
        "that is 6.6 to 7.1 times faster; with two, torch gains more. Diagonal Pade approximants would need as many."
    ),
}
