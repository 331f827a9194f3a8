"""What every test starts from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# A shared machine is slow now and then, which is no failure; and a run that failed must fail again when repeated.
settings.register_profile("library", deadline=None, derandomize=True)
settings.load_profile("library")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """The same random numbers for a test whatever ran before it."""
    torch.manual_seed(0)
