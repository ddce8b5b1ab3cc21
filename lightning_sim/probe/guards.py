"""Running a network without leaving a trace on it or on the random state, and layer by layer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["evaluating", "isolated_random_state", "uncompiled"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule; each gets its own flag back, also after an exception.

    The flags are set directly: `train()` on the root would thaw layers that the user froze, and networks that
    override it (to merge adapters, say) would do more than change a flag.
    """
    flags = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Fixed random state of Python, NumPy and torch inside, the caller's state afterwards, also after an exception.

    Seeding makes random transforms of the probe the same in every pass.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled functions and modules run as they were written inside: compiled code calls no hooks added later."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is not None:  # torch >= 2.6
        with set_stance("force_eager"):
            yield
        return
    from torch._dynamo import config

    previous = config.disable
    config.disable = True
    try:
        yield
    finally:
        config.disable = previous
