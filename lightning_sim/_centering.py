"""Columns without their means, accurately enough that a constant representation is recognised."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["center_columns", "column_sums", "for_sums", "home_of_sums", "undefined", "unit_scale", "widen"]

_ROWS = 8


def center_columns(x: Tensor) -> Tensor:
    """`x` minus its column means, widened; columns that do not vary become exact zeros.

    A column that holds one value does not centre to zeros when its mean is rounded, and a column that should
    be constant carries the rounding of what computed it. Both have a range of a few units in the last place
    of the dtype of `x`, and are zeroed.
    """
    constant = x.amax(0) - x.amin(0) <= 8 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    x = widen(x)
    x = x - x.mean(0)
    x = x - x.mean(0)  # the first mean was rounded, which next to a large offset leaves an error
    return x.masked_fill(constant, 0)


def column_sums(folds: Tensor) -> Tensor:
    """Of (folds, b, c) over b, in float64. A few rows are added up before, in the precision that they have."""
    whole = folds.shape[1] // _ROWS * _ROWS
    # To widen all of them would take longer than all else that a sketch does with narrow features.
    few = folds[:, :whole].reshape(len(folds), -1, _ROWS, folds.shape[2]).sum(2)
    return torch.cat([few, folds[:, whole:]], dim=1).sum(1, dtype=torch.float64)


def unit_scale(x: Tensor) -> Tensor:
    """`x` divided by its largest magnitude, for measures free of scale whose products must stay in range."""
    largest = x.detach().abs().amax()
    return x / torch.where(largest > 0, largest, torch.ones_like(largest))


def widen(x: Tensor) -> Tensor:
    """`x` in float64, which neither autocast nor TF32 touches; as it is on MPS, which has no float64."""
    if home_of_sums(x.device) != x.device:
        return x if x.is_floating_point() else x.float()
    return x.double()


def home_of_sums(device: torch.device | str) -> torch.device:
    """Where float64 sums of what is on a device lie: on it, or on the CPU if it is MPS, which has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def for_sums(x: Tensor) -> Tensor:
    """`x` in float64 to be added up, on its device or, of MPS, on the CPU."""
    return x.to(home_of_sums(x.device)).double()


def undefined(message: str, like: Tensor, *, stacklevel: int = 3) -> Tensor:
    """NaN in the dtype of `like`, after a warning that says why there is no value.

    `stacklevel` 3 points at the line that called the function which calls this one.
    """
    warnings.warn(f"{message}; the value is undefined, returning NaN", UserWarning, stacklevel=stacklevel)
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device)
