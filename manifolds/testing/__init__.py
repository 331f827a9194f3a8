"""The conformance kit: what every manifold must satisfy, and Hypothesis strategies to test with.

from manifolds.testing import check_manifold

check_manifold(MyManifold(), (5, 3))
"""

from ._check import ConformanceError, Failure, check_manifold
from .strategies import points, shapes, tangent_vectors

__all__ = ["ConformanceError", "Failure", "check_manifold", "points", "shapes", "tangent_vectors"]
