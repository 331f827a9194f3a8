"""The few objects of torch, jaxtyping and Python that these pages link to, so that a build needs no network."""

from __future__ import annotations

import zlib
from pathlib import Path

_OBJECTS = {
    "torch": {
        "py:class": {
            "Tensor": "tensors.html#torch.Tensor",
            "torch.Tensor": "tensors.html",
            "torch.Generator": "",
            "torch._C.Generator": "generated/torch.Generator.html#torch.Generator",
            "torch.dtype": "tensor_attributes.html",
            "torch.device": "tensor_attributes.html",
            "torch.nn.Bilinear": "",
            "torch.nn.Conv2d": "",
            "torch.nn.Embedding": "",
            "torch.nn.GRU": "",
            "torch.nn.LSTM": "",
            "torch.nn.Linear": "",
            "torch.nn.Module": "",
            "torch.nn.MultiheadAttention": "",
            "torch.nn.modules.module.Module": "generated/torch.nn.Module.html#torch.nn.Module",
            "torch.nn.parameter.Parameter": "",
            "torch.optim.Adam": "generated/torch.optim.Adam.html",
            "torch.optim.Optimizer": "optim.html",
            "torch.optim.SGD": "generated/torch.optim.SGD.html",
            "torch.optim.optimizer.Optimizer": "optim.html#torch.optim.Optimizer",
            "torch.optim.swa_utils.AveragedModel": "optim.html",
        },
        "py:function": {
            "torch.compile": "",
            "torch.nn.utils.parametrizations.orthogonal": "",
            "torch.nn.utils.parametrize.cached": "",
            "torch.nn.utils.parametrize.register_parametrization": "",
            "torch.nn.utils.parametrize.remove_parametrizations": "",
        },
    },
    "jaxtyping": {
        "py:class": {
            "jaxtyping.Bool": "api/array/#dtype",
            "jaxtyping.Float": "api/array/#dtype",
            "jaxtyping.Inexact": "api/array/#dtype",
        },
    },
    "python": {
        "py:class": {
            "collections.abc.Callable": "library/collections.abc.html",
            "collections.abc.Iterable": "library/collections.abc.html",
            "collections.abc.Mapping": "library/collections.abc.html",
            "collections.abc.Sequence": "library/collections.abc.html",
            "abc.ABC": "library/abc.html",
            "bool": "library/functions.html",
            "dict": "library/stdtypes.html",
            "float": "library/functions.html",
            "int": "library/functions.html",
            "list": "library/stdtypes.html",
            "object": "library/functions.html",
            "str": "library/stdtypes.html",
            "tuple": "library/stdtypes.html",
            "type": "library/functions.html",
            "typing.NamedTuple": "library/typing.html",
        },
        "py:data": {
            "None": "library/constants.html",
            "typing.Any": "library/typing.html",
            "typing.Literal": "library/typing.html",
        },
        "py:exception": {
            "AssertionError": "library/exceptions.html",
            "TypeError": "library/exceptions.html",
            "ValueError": "library/exceptions.html",
        },
    },
}

_SITES = {
    "torch": "https://docs.pytorch.org/docs/stable/",
    "jaxtyping": "https://docs.kidger.site/jaxtyping/",
    "python": "https://docs.python.org/3/",
}


def _address(name: str, page: str) -> str:
    """Where an object is described; a name that torch gives to itself inside has the place of its public name."""
    return page if "#" in page else f"{page or f'generated/{name}.html'}#{name}"


def mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes one inventory a project into the folder: the value of `intersphinx_mapping`."""
    folder.mkdir(parents=True, exist_ok=True)
    for project, kinds in _OBJECTS.items():
        lines = [
            f"{name} {kind} 1 {_address(name, page)} -\n"
            for kind, objects in kinds.items()
            for name, page in objects.items()
        ]
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed with zlib.\n"
        (folder / f"{project}.inv").write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return {project: (site, str(folder / f"{project}.inv")) for project, site in _SITES.items()}
