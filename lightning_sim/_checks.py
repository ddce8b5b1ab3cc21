"""Checks of tensors given by the user, in one place so that every message has the same form."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "INTEGERS",
    "check_choice",
    "check_flag",
    "check_floating",
    "check_ids",
    "check_logits",
    "check_matrix",
    "check_pair",
    "check_tensor",
    "is_number",
    "warn_if_constant",
    "working_dtype",
]

# Those with arithmetic; the ones of 8 bits have none.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_pair(
    x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y"), minimum_rows: int = 2
) -> tuple[Tensor, Tensor]:
    """Two matrices with the same number of rows, cast to the wider of float32 and both input dtypes."""
    try:
        x, y = check_matrix(x, names[0]), check_matrix(y, names[1])
    except ValueError as error:
        shapes = (f"`{name}` {tuple(getattr(z, 'shape', ()))}" for name, z in zip(names, (x, y), strict=True))
        raise ValueError(f"{error} (shapes: {', '.join(shapes)})") from None
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
    _check_devices(x, y, names)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def check_matrix(x: Tensor, name: str, *, form: str = "(samples, width)") -> Tensor:
    """A finite floating-point matrix of the `form`, cast to the wider of float32 and its dtype."""
    _check_kind(x, name, form)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"`{name}` of shape {tuple(x.shape)} holds NaN or infinite values")
    return x.to(working_dtype(x.dtype))


def check_logits(
    a: Tensor, b: Tensor, *, names: tuple[str, str] = ("logits_a", "logits_b"), minimum_rows: int = 1
) -> tuple[Tensor, Tensor]:
    """Two matrices (samples, classes) of one shape; -inf, the logit of probability zero, is allowed."""
    for logits, name in ((a, names[0]), (b, names[1])):
        _check_kind(logits, name, "(samples, classes)")
        check_matrix(logits.masked_fill(logits == -torch.inf, 0), name)
        if logits.shape[1] < 2:
            raise ValueError(
                f"`{name}` must hold the logits of at least 2 classes, got shape {tuple(logits.shape)}; "
                "for one logit z per sample give torch.stack([torch.zeros_like(z), z], 1)"
            )
        if bool((logits == -torch.inf).all(1).any()):
            raise ValueError(f"`{name}` of shape {tuple(logits.shape)} holds a sample with all logits -inf")
    if a.shape != b.shape:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must hold the same samples and classes, "
            f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.shape[0] < minimum_rows:
        raise ValueError(f"`{names[0]}` and `{names[1]}` need at least 1 sample, got shape {tuple(a.shape)}")
    _check_devices(a, b, names)
    dtype = working_dtype(torch.promote_types(a.dtype, b.dtype))
    return a.to(dtype), b.to(dtype)


def check_tensor(x: object, name: str, form: str) -> None:
    """Refuse what is no tensor, or one whose entries are not at hand one by one."""
    if not isinstance(x, Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor of shape {form}, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        raise ValueError(f"`{name}` must be a dense tensor, got a nested or sparse one of {x.layout}; make it dense")
    if x.is_meta:
        raise ValueError(f"`{name}` of shape {tuple(x.shape)} is on the meta device, where tensors hold no values")


def check_floating(x: Tensor, name: str) -> None:
    """Refuse a tensor of numbers without arithmetic, or without fractions."""
    if x.dtype not in _FLOATS:
        raise ValueError(f"`{name}` must be floating-point, got {x.dtype} of shape {tuple(x.shape)}; call .float()")


def check_ids(sample_ids: Tensor, rows: Tensor, name: str, *, argument: str = "sample_ids") -> None:
    """Refuse what is not one integer for each of the `rows`, which the user knows by `name`."""
    check_tensor(sample_ids, argument, f"({len(rows)},)")
    if sample_ids.dtype not in INTEGERS or sample_ids.shape != rows.shape[:1]:
        raise ValueError(
            f"`{argument}` must be {len(rows)} integers, one for each row of `{name}` of shape {tuple(rows.shape)}, "
            f"got {sample_ids.dtype} of shape {tuple(sample_ids.shape)}"
        )


def check_flag(value: object, name: str) -> None:
    """Refuse a `value` that is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether this is a real number, which True and NaN are not."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and value == value


def check_choice(value: object, name: str, choices: tuple[object, ...]) -> None:
    """Refuse a `value` that is not among the `choices`."""
    # Arrays and tensors compare entry by entry.
    if not isinstance(value, str | int | float | None) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The wider of float32 and `dtype`: half precision is never accumulated in."""
    return torch.promote_types(dtype, torch.float32)


def warn_if_constant(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y"), stacklevel: int = 3) -> bool:
    """Whether either matrix is zero, after a warning that names it; give centred matrices (`center_columns`).

    The caller returns NaN then: similarity to a representation without variance is 0/0, neither 0 nor 1.
    `stacklevel` 3 points at the line that called the public function which calls this one.
    """
    constant = [f"`{name}`" for name, matrix in zip(names, (x, y), strict=True) if not bool(matrix.any())]
    if constant:
        warnings.warn(
            f"{' and '.join(constant)} has no variance over the samples; the value is undefined, returning NaN",
            UserWarning,
            stacklevel=stacklevel,
        )
    return bool(constant)


def _check_kind(x: Tensor, name: str, form: str) -> None:
    check_tensor(x, name, form)
    shape = tuple(x.shape)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"`{name}` must have shape {form}, got {shape}; flatten further dimensions first")
    check_floating(x, name)


def _check_devices(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    if a.device != b.device:
        raise ValueError(
            f"`{names[0]}` is on {a.device} and `{names[1]}` on {b.device}; move one to the other's device"
        )
