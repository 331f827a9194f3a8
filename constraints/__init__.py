"""Hold the tensors of a torch.nn.Module on manifolds."""

from .constrain import constrain, unconstrain
from .packing import Packing, register_packing
from .riemannian import Riemannian, param_groups
from .trivialization import Trivialization

__all__ = ["Packing", "Riemannian", "Trivialization", "constrain", "param_groups", "register_packing", "unconstrain"]
