"""How large a run of the benchmarks is, and where it runs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Size ``"tiny"`` shows that everything runs and measures nothing."""

    device: torch.device
    size: Literal["tiny", "quick", "full"]

    def choose(self, *, tiny: T, quick: T, full: T) -> T:
        return {"tiny": tiny, "quick": quick, "full": full}[self.size]

    @property
    def rounds(self) -> int:
        return self.choose(tiny=2, quick=3, full=5)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
