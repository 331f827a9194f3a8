"""Hold the tensors of a torch.nn.Module on manifolds."""

from manifolds import BlockSpec

from .checkpoints import export_state_dict
from .constrain import constrain, unconstrain
from .packing import Packing, register_packing
from .rebase import rebase
from .report import report
from .riemannian import Riemannian, param_groups
from .trivialization import Trivialization

__all__ = [
    "BlockSpec",
    "Packing",
    "Riemannian",
    "Trivialization",
    "constrain",
    "export_state_dict",
    "param_groups",
    "rebase",
    "register_packing",
    "report",
    "unconstrain",
]
