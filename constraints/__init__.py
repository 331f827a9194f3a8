"""Hold the tensors of a torch.nn.Module on manifolds."""

from manifolds import BlockSpec

from .agreement import check_agreement
from .averaging import AveragedModel
from .checkpoints import export_state_dict, load_checked
from .constrain import constrain, unconstrain
from .packing import Packing, register_packing
from .rebase import rebase
from .report import report
from .riemannian import Riemannian, param_groups
from .solve import (
    LBFGS,
    ConjugateGradient,
    GradientDescent,
    TrustRegion,
    check_gradient,
    check_hessian,
    minimize,
)
from .trivialization import Trivialization

__all__ = [
    "LBFGS",
    "AveragedModel",
    "BlockSpec",
    "ConjugateGradient",
    "GradientDescent",
    "Packing",
    "Riemannian",
    "Trivialization",
    "TrustRegion",
    "check_agreement",
    "check_gradient",
    "check_hessian",
    "constrain",
    "export_state_dict",
    "load_checked",
    "minimize",
    "param_groups",
    "rebase",
    "register_packing",
    "report",
    "unconstrain",
]
