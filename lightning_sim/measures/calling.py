"""Calling a user's function or metric on two tensors: a number, or NaN and the reason."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Undefined", "called", "function_name"]


class Undefined(str):
    """Why a number has no value by its definition: nothing failed, so it never ends a training."""


def called(
    function: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor
) -> tuple[float, str | None, dict[str, float]]:
    """``function(x, y)`` as a number, NaN where it raised, why it is NaN in words, and what stands beside it.

    A function may give an `Estimate`, or another pair of a value and its standard error.
    """
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            result: Any = _of_metric(function, x, y) if isinstance(function, Metric) else function(x, y)
        beside = {}
        if isinstance(result, tuple) and len(result) == 2:
            result, beside["standard_error"] = result[0], float(result[1])
        value = float(result)
    except Exception as error:
        return math.nan, f"could not be computed: {type(error).__name__}: {error}", {}
    if not math.isnan(value):
        return value, None, beside
    reasons = "; ".join(dict.fromkeys(str(warning.message) for warning in caught))
    return value, Undefined(f"is undefined: {reasons}") if reasons else "is NaN, and the function gave no reason", {}


def function_name(function: Any, name: str | None) -> str:
    """What the measure of a function or metric is called.

    Raises:
        ValueError: for a function without a usable name, when none is given.
    """
    found = name or (type(function).__name__ if isinstance(function, Metric) else getattr(function, "__name__", ""))
    if not callable(function):
        raise ValueError(f"`function` must be callable as function(x, y), got {function!r}")
    if not found or not set("/@<>").isdisjoint(found):
        raise ValueError(
            f"a measure of `measures` needs a name without / and @, got {found!r} of {function!r}; give name="
        )
    return found


def _of_metric(metric: Metric, x: Tensor, y: Tensor) -> Any:
    # Every rank holds all samples: the ranks' states must not be added.
    own = metric.clone().to(x.device)
    own.sync_on_compute = False
    own.reset()
    own.update(x, y)
    return own.compute()
