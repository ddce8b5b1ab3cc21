"""Float32 products in full precision, whatever the switches of the program around say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast, TF32 or bfloat16, which keep too few bits for a difference of Grams; and without a graph."""
    # torch 2.9 has a switch for each backend, and refuses to read the older one for all once these were used.
    backends: tuple[Any, ...] = (torch.backends.cuda, torch.backends.mkldnn)
    switches: list[Any] = [getattr(backend, "matmul", None) for backend in backends]
    switches = [switch for switch in switches if hasattr(switch, "fp32_precision")]
    before = [switch.fp32_precision for switch in switches] or torch.get_float32_matmul_precision()
    for switch in switches:
        switch.fp32_precision = "ieee"
    if not switches:
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, before, strict=False):
            switch.fp32_precision = "none"  # as what it inherits from, where that is what it was
            if switch.fp32_precision != value:
                switch.fp32_precision = value
        if not switches:
            torch.set_float32_matmul_precision(str(before))
