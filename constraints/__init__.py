"""Hold the tensors of a torch.nn.Module on manifolds."""

from manifolds import BlockSpec

from .averaging import AveragedModel
from .checkpoints import export_state_dict, load_checked
from .constrain import constrain, unconstrain
from .packing import Packing, register_packing
from .rebase import rebase
from .report import report
from .riemannian import Riemannian, param_groups
from .trivialization import Trivialization

__all__ = [
    "AveragedModel",
    "BlockSpec",
    "Packing",
    "Riemannian",
    "Trivialization",
    "constrain",
    "export_state_dict",
    "load_checked",
    "param_groups",
    "rebase",
    "register_packing",
    "report",
    "unconstrain",
]
