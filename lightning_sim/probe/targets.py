"""The classes of the samples in a batch, found where people put them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sim._checks import INTEGERS

__all__ = ["find_targets"]

_NAMES = ("labels", "label", "targets", "target", "y")


def find_targets(batch: Any, logits: Tensor) -> Tensor | None:
    """Classes (samples,), int64: in the second place of a tuple, or under a name such as ``"labels"`` in a mapping.

    Args:
        batch: of any kind.
        logits: (samples, classes), which say how many of each there are, and the device.

    Returns:
        None for a batch without one integer a sample that is a class.
    """
    found = None
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in _NAMES if name in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[1]
    if not isinstance(found, Tensor) or found.shape != logits.shape[:1] or found.dtype not in INTEGERS:
        return None
    found = found.to(logits.device, torch.int64)
    return found if bool(((found >= 0) & (found < logits.shape[1])).all()) else None
