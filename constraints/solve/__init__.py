"""Solvers with a stopping rule: the point where a smooth function on a manifold is least, and a certificate."""

from . import hessians
from .minimize import minimize
from .result import Evaluations, History, Result
from .run import Point
from .solver import Solver
from .trust_region import TrustRegion

__all__ = ["Evaluations", "History", "Point", "Result", "Solver", "TrustRegion", "hessians", "minimize"]
