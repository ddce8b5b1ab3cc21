"""Timing contenders side by side: A B A B ..., so that a machine that slows down slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Rounds", "interleaved"]


@dataclass(frozen=True)
class Rounds:
    """Contender -> seconds in every round."""

    seconds: dict[str, list[float]]

    def ratios(self, numerator: str, denominator: str) -> list[float]:
        """Of the two contenders, round by round."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return [above / below for above, below in pairs]


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device | None = None,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Run all contenders one after the other, `rounds` times, after `warm_up` rounds that do not count.

    No garbage is collected meanwhile. On CUDA devices all work is waited for.
    """

    def timed(run: Callable[[], object]) -> float:
        _wait_for(device)
        start = clock()
        run()
        _wait_for(device)
        return clock() - start

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(warm_up + rounds):
            for name, run in contenders.items():
                elapsed = timed(run)
                if index >= warm_up:
                    seconds[name].append(elapsed)
    finally:
        if enabled:
            gc.enable()
    return Rounds(seconds)


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
