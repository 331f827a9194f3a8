"""
A model on two processes
========================

Question: does a model whose constrained weights are cut in pieces over processes train as the whole model does?

Answer: yes, to rounding, with both engines: constrain the model, shard it, and make the optimizer last.

Run it with ``torchrun --nproc-per-node 2 tutorials/08_sharded.py``; alone it runs as one process.
"""

import os
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm

from constraints import Riemannian, Trivialization, constrain, export_state_dict, report
from constraints.optim import RiemannianAdam
from manifolds import Orthogonal, Stiefel

# %%
# Every process has a number, its rank, and a part of each batch.

size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
store = distributed.HashStore() if size == 1 else None  # type: ignore[attr-defined]
distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
mesh = init_device_mesh("cpu", (size,))
part = slice(rank * 8 // size, (rank + 1) * 8 // size)


# %%
# A recurrent network with three orthogonal gates, and a tall map into it.
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.gru, self.out = nn.Linear(3, 10), nn.GRU(10, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last: torch.Tensor = self.out(self.gru(self.into(x))[0].mean(1))
        return last


def made(method: Any) -> Any:
    torch.manual_seed(0)
    net = constrain(Net().double(), "into.weight", Stiefel, method)
    return constrain(net, "gru.weight_hh_l0", Orthogonal**3, method)


def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr)


def trained(net: Any, optimizer: torch.optim.Optimizer, rows: slice, name: str) -> dict[str, torch.Tensor]:
    for step in tqdm(range(10), desc=name, disable=rank > 0):
        x = torch.randn(8, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x[rows]) - x[rows].sum((1, 2))[:, None]).square().mean().backward()
        optimizer.step()
    return export_state_dict(net)  # gathered, so every process calls it


# %%
# Once whole, on all rows of the batch, and once in pieces, on the rows of this process.

differences = []
for method in (Trivialization(), Riemannian()):
    make: Any = (
        RiemannianAdam if isinstance(method, Riemannian) else lambda net, lr: torch.optim.Adam(net.parameters(), lr)
    )
    whole = made(method)
    alone = trained(whole, make(whole, 1e-2), slice(None), f"{method} whole")
    pieces: Any = fully_shard(made(method), mesh=mesh)
    joined = trained(pieces, make(pieces, 1e-2), part, f"{method} in {size} pieces")
    differences.append(max(float((alone[key] - joined[key]).abs().max()) for key in alone))
    table = report(pieces)
    if rank == 0:
        print(table)
        print(f"{method}: off by {differences[-1]:.1e} from one process")
distributed.destroy_process_group()

# %%
# Sums are taken in another order, and nothing else is different.

assert max(differences) < 1e-9
