"""Solvers with a stopping rule: the point where a smooth function on a manifold is least, and a certificate."""

from . import betas, hessians
from .checks import Check, check_gradient, check_hessian
from .conjugate_gradient import ConjugateGradient
from .gradient_descent import GradientDescent
from .lbfgs import LBFGS
from .minimize import minimize
from .problem import Evaluations
from .result import History, Result
from .run import Point
from .searches import Armijo, HagerZhang, LineSearch, StrongWolfe
from .solver import Solver
from .trust_region import TrustRegion

__all__ = [
    "LBFGS",
    "Armijo",
    "Check",
    "ConjugateGradient",
    "Evaluations",
    "GradientDescent",
    "HagerZhang",
    "History",
    "LineSearch",
    "Point",
    "Result",
    "Solver",
    "StrongWolfe",
    "TrustRegion",
    "betas",
    "check_gradient",
    "check_hessian",
    "hessians",
    "minimize",
]
