"""Why a row misses its target, where it does, and what was tried; shown with the row only then."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "step-20000x3": (
        "one batched product of 3 x 3 matrices (u) takes as long as Adam's whole step, and a step on the manifold "
        "needs three, with a few passes between them. Batch last in memory, in one tile for each thread, products "
        "are three times faster, and the step takes 3.1 to 3.3 times Adam's time, down from 3.6. The same sequence of "
        "torch's operations written out by hand, with the looks for writes from outside and for gradients that are "
        "not finite, takes 2.0 times. What lies between is calls: some fifty views of tensors and a hundred "
        "functions of Python, which a training step finds out of the processor's cache. Tried besides: cross "
        "products and rotation matrices (more calls), kernels made by torch.compile (slower as traced, 1.9 to 2.0 "
        "times Adam's time in one kernel)."
    ),
    "step-4096x8": (
        "one batched product of 8 x 8 matrices (u) takes half of Adam's whole step, and a step on the manifold needs "
        "three, and to transpose one matrix takes as long as a product. The shortest sequence of torch's operations "
        "that does the step takes 1.9 to 2.0 times Adam's time, with the looks for writes from outside (6 % of ours) "
        "and for gradients that are not finite (3 %); the rest is bookkeeping. Batch last in memory the products are "
        "slower. Where the process gets its temporaries from fresh memory, Adam's among them, the ratio is 2.0."
    ),
    "step-1024x64": (
        "products are too small here to hide what is between them: sums that see a write from outside and a gradient "
        "that is not finite, which POGO does not look for, and some thirty calls of torch."
    ),
    "step-64x64x64": (
        "the ratio is 1.95 to 2.05 from run to run, and 2.2 to 3.2 where the memory of POGO's temporaries is new to "
        "the process. Ours are three products and ten passes over memory, one of them a transposition that takes "
        "as long as two others and a half. Working through the matrices in chunks that fit the cache was tried and "
        "gained nothing."
    ),
    "map-cayley": "one LU factorization, its solves and one product are most of it, as they are of torch's.",
    "map-exp": (
        "at coordinates with singular values about 1 the polynomial and its derivative take 13 products of n x n "
        "matrices, down from 22 by shorter polynomials, a sharper bound of |A|, and A^3 and A^4 from one product."
    ),
}
