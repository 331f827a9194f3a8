"""A small GPT whose attention, experts and embeddings are held, on two and four processes, and on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constraints import BlockSpec, Riemannian, Trivialization, constrain, export_state_dict, param_groups, report
from constraints.optim import RiemannianAdam, RiemannianAdamW, RiemannianMuon
from constraints.sharding import whole
from manifolds import Stiefel

from .processes import processes

WIDTH, HEADS, EXPERTS, WORDS, LENGTH, BATCH = 8, 2, 4, 11, 6, 8
QKV = BlockSpec.pattern("(qkv head d) e -> (qkv head) d e", qkv=3, head=HEADS)
RIEMANNIAN: dict[str, Any] = {"Adam": RiemannianAdam, "AdamW": RiemannianAdamW, "Muon": RiemannianMuon}
PLAIN: dict[str, Any] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
CASES = [("Riemannian", kind) for kind in RIEMANNIAN] + [("Trivialization", kind) for kind in PLAIN]
FEW, MANY = 4, 100
FIRST = [("Riemannian", "AdamW"), ("Riemannian", "Muon"), ("Trivialization", "Adam")]  # the others in the slow test


class Block(nn.Module):
    """Attention, and a mixture of experts (E, n, p)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.router, self.down = nn.Linear(WIDTH, EXPERTS), nn.Parameter(torch.randn(EXPERTS, WIDTH, 5))
        self.up = nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).transpose(1, 3).unbind(2)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        y = self.second(x)
        mixed = torch.einsum("btn,enp,bte->btp", y, self.down, self.router(y).softmax(-1))
        return x + self.up(mixed.tanh())  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(WORDS, WIDTH), nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks, self.norm = nn.ModuleList([Block()]), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def _model(engine: str) -> Any:
    torch.manual_seed(0)
    # where the base follows the weight by itself, processes look at other steps than one does
    method: Any = Riemannian() if engine == "Riemannian" else Trivialization(rebase_every=3)
    model = constrain(Model().double(), "*.qkv.weight", Stiefel, method, layout=QKV)
    constrain(model, "*.down", Stiefel, method, init="haar")
    return constrain(model, "embed.weight", Stiefel, method, init="haar")


def _optimizer(model: Any, engine: str, kind: str) -> Any:
    return RIEMANNIAN[kind](model, 1e-2) if engine == "Riemannian" else PLAIN[kind](param_groups(model), 1e-2)


def _train(model: Any, optimizer: Any, steps: range, part: slice = slice(None)) -> None:
    """Words of which each is told by the two before it."""
    for step in steps:
        start = torch.randint(WORDS, (BATCH, 2), generator=torch.Generator().manual_seed(step))
        words = [*start.unbind(1)]
        while len(words) <= LENGTH:
            words.append((words[-1] + 3 * words[-2]) % WORDS)
        all_words = torch.stack(words, 1)[part]
        optimizer.zero_grad()
        functional.cross_entropy(model(all_words[:, :-1]).flatten(0, 1), all_words[:, 1:].flatten()).backward()
        optimizer.step()


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    parts = get_state_dict(model, optimizer)
    return {"model": parts[0], "optimizer": parts[1]}


def _seen(model: Any) -> dict[str, Tensor]:
    return {key: whole(t.detach()).clone() for key, t in export_state_dict(model).items()}


def _work(rank: int, folder: str, steps: int, cases: list[Any]) -> Any:
    """On four processes, and then on two pairs of them, of which each does what two alone would do."""
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    four, pair = (
        init_device_mesh("cpu", (4,)),
        init_device_mesh("cpu", (2, 2), mesh_dim_names=("pairs", "pair"))["pair"],
    )
    found = dict[Any, Any]()

    def made(case: Any, mesh: Any) -> tuple[Any, Any]:
        model = _model(case[0])
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, _optimizer(model, *case)

    def part(mesh: Any) -> slice:
        size = BATCH // mesh.size()
        return slice(mesh.get_local_rank() * size, (mesh.get_local_rank() + 1) * size)

    for case in cases:
        half, place = steps // 2, f"{folder}/{' '.join(case)}"
        for mesh in (four, pair):
            model, optimizer = made(case, mesh)
            _train(model, optimizer, range(half), part(mesh))
            if mesh is four:
                save(_state(model, optimizer), checkpoint_id=place)
            _train(model, optimizer, range(half, steps), part(mesh))
            found[case, mesh.size()] = _seen(model)
            found[case, "residual"] = max(max(held.residuals) for held in report(model))
        model, optimizer = made(case, pair)
        state = _state(model, optimizer)
        load(state, checkpoint_id=place, process_group=pair.get_group())
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        _train(model, optimizer, range(half, steps), part(pair))
        found[case, "loaded"] = _seen(model)
    return found


def _run(root: Path, steps: int, cases: list[Any], seconds: float) -> list[Any]:
    again: list[Any] = []
    return processes(4, _work, root, lambda *note: again.append(note), str(root), steps, cases, seconds=seconds)


def _check(case: tuple[str, str], ranks: list[Any], steps: int, bound: float) -> None:
    model = _model(case[0])
    _train(model, _optimizer(model, *case), range(steps))
    for key, value in export_state_dict(model).items():
        for which in (4, 2, "loaded"):
            assert all(torch.equal(rank[case, which][key], ranks[0][case, which][key]) for rank in ranks)
            torch.testing.assert_close(ranks[0][case, which][key], value, rtol=0, atol=bound)
    assert max(rank[case, "residual"] for rank in ranks) <= 1e-5


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return _run(tmp_path_factory.mktemp("few"), FEW, FIRST, 200)


@pytest.mark.timeout(420)
@pytest.mark.parametrize("case", FIRST, ids=" ".join)
def test_more_processes_train_as_one(case: tuple[str, str], few: list[Any]) -> None:
    """Alike to the bit among themselves, on their manifolds, and on two from what four have saved."""
    _check(case, few, FEW, 1e-11)  # 1e4 eps: sums in another order, in some steps of Adam on gradients far above eps


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return _run(tmp_path_factory.mktemp("many"), MANY, CASES, 1500)


@pytest.mark.slow
@pytest.mark.timeout(3100)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_they_do_so_for_a_hundred_steps(case: tuple[str, str], many: list[Any]) -> None:
    _check(case, many, MANY, 1e-7)
