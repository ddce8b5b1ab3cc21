"""Where a batch has its inputs, and what of them are pixels: the values before they were normalised, from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sim._arguments import check_number

__all__ = ["Pixels", "find_inputs", "with_inputs"]

_NAMES = ("pixel_values", "images", "image", "inputs", "input", "x")
_TOLERANCE = 1e-3  # of the range, by which rounding and resizing may leave it


@dataclass(frozen=True)
class Pixels:
    """How inputs came from pixels in `bounds`: ``input = (pixel - mean) / std``, channel by channel.

    Args:
        bounds: the least and the largest value of a pixel.
        mean: of every channel, or of all; none was subtracted if None.
        std: likewise.
    """

    bounds: tuple[float, float] = (0.0, 1.0)
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None

    def __post_init__(self) -> None:
        bounds = tuple(check_number(bound, "bounds") for bound in self.bounds)
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"`bounds` must be the least and the largest value of a pixel, got {self.bounds}")
        object.__setattr__(self, "bounds", bounds)
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, int | float) else tuple(given or ())
            object.__setattr__(self, name, tuple(check_number(value, name) for value in values))
        if any(not value > 0 for value in self.std or ()):  # type: ignore[union-attr]
            raise ValueError(f"`std` must be above 0, got {self.std}")

    def of(self, inputs: Tensor) -> Tensor:
        """The pixels of inputs (n, channels, ...) as float32 from 0 to 1, in memory of their own.

        Raises:
            ValueError: for integers, and for what lies beyond the bounds.
        """
        if not inputs.is_floating_point():
            raise ValueError(
                f"inputs must be floating-point to be corrupted or attacked, got {inputs.dtype} of shape "
                f"{tuple(inputs.shape)}; make images float, images / 255, and of tokens condition the embeddings"
            )
        low, high = self.bounds
        pixels = inputs.detach().to(torch.float32, copy=True)
        pixels = (pixels * self._channels(self.std, 1.0, inputs) + self._channels(self.mean, 0.0, inputs) - low) / (
            high - low
        )
        if pixels.numel() and not (pixels.min() >= -_TOLERANCE and pixels.max() <= 1 + _TOLERANCE):
            raise ValueError(
                f"pixels must lie in the bounds {low:g} to {high:g}, and these go from {_least(pixels, low, high):.3g} "
                f"to {_least(-pixels, low, high, -1):.3g}; give `bounds`, or `mean` and `std` of normalised inputs: "
                'Corruption("fog", mean=..., std=...), Attack("pgd", mean=..., std=...)'
            )
        return pixels.clamp_(0, 1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """The inverse of `of`, in memory of its own."""
        low, high = self.bounds
        value = pixels * (high - low) + low - self._channels(self.mean, 0.0, pixels)
        return value / self._channels(self.std, 1.0, pixels)

    def _channels(self, values: Any, otherwise: float, like: Tensor) -> Tensor:
        """One value for every channel."""
        if len(values) > 1 and (like.ndim < 2 or like.shape[1] != len(values)):
            raise ValueError(f"`mean` and `std` are of {len(values)} channels, and inputs of shape {tuple(like.shape)}")
        found = torch.tensor(values or (otherwise,), dtype=torch.float32, device=like.device)
        return found.view(1, -1, *[1] * (like.ndim - 2)) if like.ndim > 1 else found


def _least(pixels: Tensor, low: float, high: float, sign: int = 1) -> float:
    return sign * float(pixels.min()) * (high - low) + low


def find_inputs(batch: Any) -> Tensor:
    """The input of a network in a batch: itself, the first of a tuple or list, or what a mapping names like images.

    Raises:
        ValueError: where there is none.
    """
    found = batch if isinstance(batch, Tensor) else batch[_place(batch)]
    if not isinstance(found, Tensor):
        raise ValueError(f"conditions are of one tensor of inputs, and the batch has {type(found).__name__} there")
    return found


def with_inputs(batch: Any, inputs: Tensor) -> Any:
    """The batch with other inputs of the same precision and on the same device; the rest is shared."""
    inputs = inputs.to(find_inputs(batch))
    if isinstance(batch, Tensor):
        return inputs
    if isinstance(batch, Mapping):
        return type(batch)({**batch, _place(batch): inputs})  # type: ignore[call-arg]
    parts = [inputs, *batch[1:]]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def _place(batch: Any) -> Any:
    if isinstance(batch, tuple | list) and batch:
        return 0
    if isinstance(batch, Mapping):
        named = next((name for name in _NAMES if name in batch), None)
        if named is not None:
            return named
        raise ValueError(f"conditions need inputs under one of {', '.join(_NAMES)}, the batch has {', '.join(batch)}")
    raise ValueError(f"conditions need a batch that is a tensor, a tuple or a mapping, got {type(batch).__name__}")
