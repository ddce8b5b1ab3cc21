"""Checks of tensors given by the user, in one place so that every message has the same form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_matrix", "check_pair", "working_dtype"]


def check_pair(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y"), minimum_rows: int = 2) -> tuple[Tensor, Tensor]:
    """Two matrices with the same number of rows, cast to the wider of float32 and both input dtypes."""
    x, y = check_matrix(x, names[0]), check_matrix(y, names[1])
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must hold the same samples row by row, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[0] < minimum_rows:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` need at least {minimum_rows} rows (samples), "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"`{names[0]}` is on {x.device} and `{names[1]}` on {y.device}; move one to the other's device")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def check_matrix(x: Tensor, name: str) -> Tensor:
    """A finite floating-point matrix (samples, width), cast to the wider of float32 and its dtype."""
    if not isinstance(x, Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor of shape (samples, width), got {type(x).__name__}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"`{name}` must have shape (samples, width), got {tuple(x.shape)}; flatten further dimensions first"
        )
    if not x.is_floating_point():
        raise ValueError(f"`{name}` must be floating-point, got {x.dtype} of shape {tuple(x.shape)}; call .float()")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"`{name}` of shape {tuple(x.shape)} holds NaN or infinite values")
    return x.to(working_dtype(x.dtype))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The wider of float32 and `dtype`: half precision is never accumulated in."""
    return torch.promote_types(dtype, torch.float32)
