"""What a sketch is made with and given, checked before anything of it is used."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

__all__ = ["checked_integer", "checked_rows", "checked_sizes"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_integer(value: Any, name: str) -> int:
    """An integer of 64 bits, of whatever type."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not -(2**63) <= number < 2**63:
        raise ValueError(f"`{name}` must be an integer of at most 64 bits, got {value!r}")
    return number


def checked_sizes(num_buckets: Any, num_projections: Any, dtype: Any) -> tuple[int, int]:
    """Buckets and projections of a sketch."""
    num_buckets = checked_integer(num_buckets, "num_buckets")
    num_projections = checked_integer(num_projections, "num_projections")
    if num_buckets < 4 or num_buckets & (num_buckets - 1):
        raise ValueError(f"`num_buckets` must be a power of two and at least 4, got {num_buckets}")
    if num_projections < 2 or num_projections % 2:
        raise ValueError(f"`num_projections` must be an even number and at least 2, got {num_projections}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    return num_buckets, num_projections


def checked_rows(values: Any, sample_ids: Any, name: str) -> Tensor:
    """A batch (b, ...) as (b, p), without its graph, if there is a sample id for each of its rows."""
    if not _is_plain(values):
        raise ValueError(f"`{name}` must be a dense torch.Tensor with content, got {_described(values)}")
    if values.ndim < 2 or not values.is_floating_point() or 0 in values.shape[1:]:
        raise ValueError(f"`{name}` must be floating-point of shape (batch, ...), got {_described(values)}")
    if not _is_plain(sample_ids) or sample_ids.shape != values.shape[:1] or sample_ids.dtype not in _INTEGERS:
        raise ValueError(
            f"`sample_ids` must be {values.shape[0]} integers, one for each row of `{name}` of shape "
            f"{tuple(values.shape)}, in a torch.Tensor, got {_described(sample_ids)}"
        )
    rows: Tensor = values.detach().flatten(1)
    return rows


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if _is_plain(value) else "meta " if value.is_meta else f"{value.layout} "
    return f"{kind}{value.dtype} of shape {tuple(value.shape)}"
