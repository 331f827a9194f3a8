"""Why a row misses its target, where it does, and what was tried; shown with the row only then."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "step-20000x3": (
        "one batched product of 3 x 3 matrices (u) takes as long as Adam's whole step, and a step on the manifold "
        "needs three, with a few passes between them. Batch last in memory, in one tile for each thread, products "
        "are three times faster, and the step takes 2.9 to 3.5 times Adam's time, down from 3.6. The same sequence of "
        "torch's operations written out by hand, with the looks for writes from outside and for gradients that are "
        "not finite, takes 2.0 times. What lies between is calls: some forty views of tensors and a hundred "
        "functions of Python, which a training step finds out of the processor's cache. Tried besides: cross "
        "products, rotation matrices and the numbers above the diagonal alone (more calls each), kernels made by "
        "torch.compile (slower as traced, 1.9 to 2.0 times Adam's time in one kernel)."
    ),
    "step-4096x8": (
        "one batched product of 8 x 8 matrices (u) takes half of Adam's whole step, and a step on the manifold "
        "needs three, and to transpose one matrix takes as long as half of one. The ratio is 2.4 to 3.5 from run "
        "to run. The same operations in one function written out by hand take 2.3 times Adam's time, the looks for "
        "writes from outside (6 % of ours) and for gradients that are not finite (3 %) among them; the rest is "
        "bookkeeping. Tried besides: products batch last in memory (slower), the series with its sums inside of the "
        "products (slower), other sums and norms (no gain)."
    ),
    "step-1024x64": (
        "products are too small here to hide what is between them: sums that see a write from outside and a gradient "
        "that is not finite, which POGO does not look for, and some thirty calls of torch."
    ),
    "step-64x64x64": (
        "the ratio is 1.7 to 3.0 from run to run, and more where gradients are noisy, for then the series needs a "
        "term less. Ours are three products and ten passes over memory, one of them a transposition that takes "
        "as long as two others and a half. Working through the matrices in chunks that fit the cache was tried and "
        "gained nothing."
    ),
    "map-cayley": (
        "3.5 products, of which the inverse by halves, in smaller blocks, takes more than its share; torch's is an LU "
        "factorization, solves and a product."
    ),
    "map-exp": (
        "at coordinates with singular values about 1 the polynomial and its derivative take 13 products of n x n "
        "matrices, down from 22 by shorter polynomials, a sharper bound of |A|, and A^3 and A^4 from one product."
    ),
    "step-ball": (
        "a row of ten numbers is short for torch: an entrywise product with one number a row takes twice as long as a "
        "plain one, and so does a product with itself and its sum. The step has four such sums, down from "
        "thirteen, and five such products; Adam has none. Rows fit the last cache. Tried besides: "
        "columns in the place of rows (the transpositions cost what they save), native sums of products (slower), "
        "the numbers written out for each entry (one pass more than it saves), chunks for the second cache (calls)."
    ),
    "step-grassmann": (
        "the matrices are small enough for calls to be most of the time, and the target, half of pymanopt's, is what "
        "the calls of torch take alone: the bare sequence of them, in one function written out by hand without plans, "
        "hooks and state dicts, takes 0.49 to 0.54 of pymanopt's time, and torch's own Adam, without any geometry, as "
        "much. Of those 25 calls the geometry is six: momentum, gradient and norm by two products of twice the "
        "columns, the polar factor by two, half of the time; three look for writes from outside and for gradients that "
        "are not finite, which the dozen lines of numpy do not. What ours takes besides, a hundred functions of "
        "Python, is as much again. Tried in the bare sequence: bases with their columns one after the other in memory "
        "(products of 10 columns are up to four times as fast, and the transpositions cost what they save), momentum "
        "carried by the p x p matrices that a step has anyway (17 % slower: a product of 10 columns takes longer than "
        "one of 20), step sizes as numbers of Python (12 % slower)."
    ),
    "muon-3x512": (
        "the exact msign of a real skew matrix is a singular value decomposition, 15 to 18 u at n = 512 on one thread; "
        "momentum and move are three products and a few passes. Tried for msign, in u: seven quintics by products 22, "
        "and small singular values do not come out as 1; eigenvectors of -S^2 in float64 21, exact, and in float32 10, "
        "off by 4e-3, for a square loses half of the digits; of iS 24; the scaled Newton iteration, six inverses, 33, "
        "or 25 by LU and a solve; six steps of QDWH by Cholesky, 4.2 each."
    ),
    "wrapped-2048x128": (
        "a tall step of RiemannianAdam is five products, for its norms and its momentum share them. An optimizer from "
        "outside is given a tangent vector (two), what it did is made tangent (two) and retracted (two), and its "
        "momentum is taken along (two): eight, and one pass of AdamW. One Gram matrix of X beside the displacement was "
        "tried in place of two: it takes as long, for each half of it is a product."
    ),
    "wrapped-100-64": (
        "torch's AdamW keeps a number for each entry where RiemannianAdam keeps one for each matrix. Its update in one "
        "pass, 1.3 ms beside 6.7 ms of a step of RiemannianAdam, and 0.4 ms to lend it a hundred tensors are on top."
    ),
}
