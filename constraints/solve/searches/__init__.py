"""How far to go along a direction: line searches, as values."""

from .armijo import Armijo
from .hager_zhang import HagerZhang
from .line import LineSearch
from .strong_wolfe import StrongWolfe

__all__ = ["Armijo", "HagerZhang", "LineSearch", "StrongWolfe"]
