"""What all optimizers share, so that a rule holds nothing but its update: which factors move together, in which memory,
what is checked before anything changes, and the state."""

from .bucket import Bucket
from .checks import Group, check_at_least_zero, check_number, check_ways
from .optimizer import Params, RiemannianOptimizer
from .options import decays_in, rate
from .travel import travel

__all__ = [
    "Bucket",
    "Group",
    "Params",
    "RiemannianOptimizer",
    "check_at_least_zero",
    "check_number",
    "check_ways",
    "decays_in",
    "rate",
    "travel",
]
