"""A manifold is a frozen value, and counts its degrees of freedom."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator

from torch import Tensor

from ._case import Case, Finding, holds, theorem


@theorem("value: equality", "a copy of M equals M, and nothing else does", ground=False)
def _(case: Case) -> Iterator[Finding]:
    yield holds(
        copy.deepcopy(case.manifold) == case.manifold, "a deep copy is not equal: write @dataclass(frozen=True)"
    )
    other: object = repr(case.manifold)
    yield holds(case.manifold != other, "equal to a string")


@theorem("value: hash", "hash(copy of M) = hash(M)", needs=("value: equality",), ground=False)
def _(case: Case) -> Iterator[Finding]:
    yield holds(hash(copy.deepcopy(case.manifold)) == hash(case.manifold), "the hash is not that of the value")


@theorem("value: pickle", "unpickle(pickle(M)) = M", needs=("value: equality",), ground=False)
def _(case: Case) -> Iterator[Finding]:
    yield holds(pickle.loads(pickle.dumps(case.manifold)) == case.manifold, "what comes back is not equal")


@theorem("value: frozen", "no attribute can be set, and none is a tensor", ground=False)
def _(case: Case) -> Iterator[Finding]:
    names = [*vars(case.manifold), "ndim"]
    for name in names:
        with contextlib.suppress(AttributeError):  # FrozenInstanceError is one
            own, value = name in vars(case.manifold), getattr(case.manifold, name)
            setattr(case.manifold, name, value)
            if not own:
                delattr(case.manifold, name)
            yield holds(False, f"{name} can be set: write @dataclass(frozen=True)")
    tensors = [name for name, value in vars(case.manifold).items() if isinstance(value, Tensor)]
    yield holds(not tensors, f"{tensors} hold tensors")


@theorem("value: repr", "one line of at most 200 characters, without addresses", ground=False)
def _(case: Case) -> Iterator[Finding]:
    text = repr(case.manifold)
    yield holds(len(text) <= 200 and "\n" not in text and " at 0x" not in text, f"{text[:80]!r}...")


@theorem("dim: additive", "dim((3, *shape)) = 3 dim(shape), an integer >= 0; and dim_of_complex", ground=False)
def _(case: Case) -> Iterator[Finding]:
    for of in (case.manifold.dim, case.manifold.dim_of_complex)[: 1 + case.dtype.is_complex]:
        one, three, name = of(case.shape), of((3, *case.shape)), of.__name__
        yield holds(isinstance(one, int) and one >= 0, f"{name}({case.shape}) is {one!r}")
        yield holds(three == 3 * one, f"{name}({(3, *case.shape)}) is {three!r}, {name}({case.shape}) is {one!r}")
