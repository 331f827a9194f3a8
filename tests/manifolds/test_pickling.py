"""A value that is pickled is the same value in another process, where strings have other hashes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    Orthogonal,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)

PATTERN = BlockSpec.pattern("(a k b) c -> (a k) b c", a=2, k=2)
ROOT = Path(__file__).parents[2]


def values() -> list[object]:
    """Every kind of value, made anew."""
    return [
        Stiefel(),
        Stiefel("canonical"),
        *(Orthogonal(retractions.exp) ** 6, SpecialOrthogonal() ** 6),
        Sphere(),
        Euclidean(),
        Stiefel("canonical") ** 3,
        Stiefel * Euclidean**2,
        ProductManifold((Stiefel("canonical"),) * 4, PATTERN),
        ProductManifold((Stiefel("canonical") ** 2, Stiefel**2)),
        PATTERN,
        BlockSpec(rows=(3, 2), axis=-1),
    ]


def used() -> list[object]:
    """The same, after everything that they may remember was computed."""
    used = values()
    for each in used:
        hash(each)
        if isinstance(each, Manifold):
            each.dim((12, 2))
    return used


def write() -> None:
    sys.stdout.buffer.write(pickle.dumps(used()))


def test_a_pickled_value_is_equal_and_has_the_same_hash_in_a_process_with_other_hashes() -> None:
    """Two processes whose hashes of strings differ: at least one of them has others than this one."""
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        code = "from tests.manifolds.test_pickling import write; write()"
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
        came = pickle.loads(done.stdout)
        assert [hash(each) for each in came] == [hash(each) for each in values()]
        assert came == values()
        assert set(came) == set(values())
