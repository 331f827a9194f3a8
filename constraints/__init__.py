"""Hold the tensors of a torch.nn.Module on manifolds."""

from .riemannian import Riemannian, param_groups

__all__ = ["Riemannian", "param_groups"]
