"""The cone of Hermitian positive definite matrices: its metrics, one a file."""

from .affine import AffineInvariant
from .flat import LogCholesky, LogEuclidean
from .metric import Metric
from .wasserstein import BuresWasserstein

__all__ = ["METRICS", "Metric"]

METRICS: dict[str, Metric] = {
    "affine-invariant": AffineInvariant(),
    "log-euclidean": LogEuclidean(),
    "log-cholesky": LogCholesky(),
    "bures-wasserstein": BuresWasserstein(),
}
