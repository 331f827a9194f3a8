"""The script: one function for each thing that people do, the same for every entrant, in the order of the table."""

from __future__ import annotations

# isort: off
from . import saving, precision, training, transforms  # the order of the table
from .common import CHECKS

__all__ = ["CHECKS", "precision", "saving", "training", "transforms"]
