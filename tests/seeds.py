"""Other random numbers for every test: what `--base-seed` does, in the processes that tests start, too."""

from __future__ import annotations

import os

import torch

NAME = "TESTS_BASE_SEED"
_seed = torch.manual_seed


class Generator(torch.Generator):
    """One that a seed gives other numbers."""

    def manual_seed(self, seed: int) -> torch.Generator:
        return super().manual_seed(seed + 1000 * shifted())


def shift(base: int) -> None:
    """Let torch.manual_seed, and generators, give other numbers in this process and in those that it starts, which call
    `follow`."""
    os.environ[NAME] = str(base)
    torch.manual_seed = lambda value: _seed(value + 1000 * base)  # type: ignore[assignment]
    torch.Generator = Generator  # type: ignore[misc]


def shifted() -> int:
    return int(os.environ.get(NAME, "0"))


def follow() -> None:
    if base := shifted():
        shift(base)
