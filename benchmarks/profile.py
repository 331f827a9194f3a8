"""Where our step of one row spends its time."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from .jobs import Row, Setting


def profile(row: Row, setting: Setting, steps: int = 20) -> str:
    """A table of operators for each contestant of ours, the most expensive first."""
    torch.manual_seed(0)
    activities = [ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    parts = []
    for name, build in row.prepare(setting).items():
        if not name.startswith("ours"):
            continue
        contestant = build()
        for _ in range(3):
            contestant.step()
        with record(activities=activities) as seen:
            for _ in range(steps):
                contestant.step()
            setting.wait()
        order = "self_cuda_time_total" if setting.device.type == "cuda" else "self_cpu_time_total"
        parts.append(f"{row.title}: {name}, {steps} steps\n{seen.key_averages().table(sort_by=order, row_limit=20)}")
    return "\n\n".join(parts)
