"""Corruptions of pictures by name: those of MNIST-C and of Hendrycks and Dietterich, with five severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_choice
from lightning_sim.conditions import blur, digital, drawing, geometry, noise, weather
from lightning_sim.conditions.draws import Draws
from lightning_sim.conditions.pixels import Pixels

__all__ = ["COLOUR_CORRUPTIONS", "CORRUPTIONS", "GREY_CORRUPTIONS", "Corruption"]

_CHUNK = 64  # samples at a time, for clouds many times their size


class _Kind(NamedTuple):
    """How a picture is changed, with parameters for every severity; of grey and colour ones where they differ."""

    change: Callable[[Tensor, Any, Draws, float], Tensor]
    grey: Sequence[Any] = (None,)
    colour: Sequence[Any] = ()
    usual: int = 3


_GLASS = ((0.7, 1, 2, 0.5), (0.9, 2, 1, 0.5), (1, 2, 3, 0.5), (1.1, 3, 2, 0.5), (1.5, 4, 2, 0.5))
_COLOUR_GLASS = ((0.05, 1, 1, 1), (0.25, 1, 1, 1), (0.4, 1, 1, 1), (0.25, 1, 2, 1), (0.4, 1, 2, 1))
_SNOW = (
    *((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7)),
    *((0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
)
_COLOUR_SNOW = (
    *((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9)),
    *((0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
)
_FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
_COLOUR_FROST = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
_COLOUR_DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_COLOUR_ZOOM = tuple((most, 0.01) for most in (1.06, 1.11, 1.16, 1.21, 1.26))
_SPATTER = (
    *((0.65, 0.3, 4, 0.69, 0.6), (0.65, 0.3, 3, 0.68, 0.6), (0.65, 0.3, 2, 0.68, 0.5)),
    *((0.65, 0.3, 1, 0.65, 1.5), (0.67, 0.4, 1, 0.65, 1.5)),
)
_FOG = tuple((thick, decay, 256 / 28) for thick, decay in ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
_COLOUR_FOG = tuple((thick, decay, 1) for thick, decay in ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)))
_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
_COLOUR_ELASTIC = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
_COLOUR_MOTION = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
_ANGLES = (0.2, 0.4, 0.6, 0.8, 1.0)

CORRUPTIONS: dict[str, _Kind] = {
    "shot_noise": _Kind(noise.shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50), 5),
    "impulse_noise": _Kind(noise.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07), 4),
    "glass_blur": _Kind(blur.glass_blur, _GLASS, _COLOUR_GLASS, 1),
    "motion_blur": _Kind(blur.motion_blur, _MOTION, _COLOUR_MOTION, 1),
    "shear": _Kind(geometry.shear, _ANGLES, usual=2),
    "scale": _Kind(geometry.scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "rotate": _Kind(geometry.rotate, _ANGLES, usual=2),
    "brightness": _Kind(weather.brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3), 5),
    "translate": _Kind(geometry.translate, (1, 2, 3, 4, 5)),
    "stripe": _Kind(drawing.stripe),
    "fog": _Kind(weather.fog, _FOG, _COLOUR_FOG, 5),
    "spatter": _Kind(weather.spatter, _SPATTER, usual=4),
    "dotted_line": _Kind(drawing.dotted_line),
    "zigzag": _Kind(drawing.zigzag),
    "canny_edges": _Kind(drawing.canny_edges),
    "gaussian_noise": _Kind(noise.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "defocus_blur": _Kind(blur.defocus_blur, _DEFOCUS, _COLOUR_DEFOCUS),
    "zoom_blur": _Kind(blur.zoom_blur, _ZOOM, _COLOUR_ZOOM),
    "snow": _Kind(weather.snow, _SNOW, _COLOUR_SNOW),
    "frost": _Kind(weather.frost, _FROST, _COLOUR_FROST),
    "contrast": _Kind(digital.contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": _Kind(geometry.elastic_transform, _ELASTIC, _COLOUR_ELASTIC),
    "pixelate": _Kind(digital.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": _Kind(digital.jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
GREY_CORRUPTIONS = tuple(CORRUPTIONS)[:15]
COLOUR_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


@dataclass(frozen=True)
class Corruption:
    """A corruption of pictures, the same for a sample in every batch, on every rank, and in every measurement.

    Parameters are those of the published code for MNIST-C (28 pixels) and, of three channels, CIFAR-10-C (32 pixels),
    where that has the kind; lengths grow with the pictures. Every kind takes any pictures. Not as published:
    frost comes from a generated texture; JPEG is computed, not encoded; mud spatters colours, too, at every severity.

    As published, a higher severity is not always harder. Accuracies at 1 to 5 under the published code itself, of
    networks with 78 % on CIFAR-10: glass blur .31 .34 .36 .29 .31, snow .69 .53 .59 .57 .52, elastic transform .71 .73
    .69 .61 .55, defocus blur .79 at 1; JPEG .68 .64 .68 at 3 to 5, of pictures stored as JPEG of quality 75 before. Of
    networks with 99 % on MNIST: spatter .98 .96 .91 .98 .95, snow .98 .96 .94 .90 .93.

    Args:
        kind: of :data:`GREY_CORRUPTIONS`, the 15 of MNIST-C, or :data:`COLOUR_CORRUPTIONS`, the 15 of Hendrycks and
            Dietterich.
        severity: 1 to 5; None for the one of MNIST-C, or 3. ``stripe``, ``dotted_line``, ``zigzag`` and
            ``canny_edges`` have none.
        bounds: least and largest value of a pixel.
        mean: of each channel (or all), as it was subtracted from the pixels to normalise them; None for none.
        std: by which they were divided then.
        seed: of what is drawn.

    Raises:
        ValueError: for an unknown kind or severity, and when called, for pictures that are not (samples, channels,
            height, width), floating-point and within the bounds.

    References:
        Mu and Gilmer 2019, *MNIST-C: A Robustness Benchmark for Computer Vision*. Hendrycks and Dietterich 2019,
        *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*.

    Example:
        >>> import torch
        >>> from lightning_sim.conditions import Corruption
        >>> images = torch.rand(4, 1, 28, 28, generator=torch.manual_seed(0))
        >>> Corruption("fog", severity=3)(images, torch.arange(4)).shape
        torch.Size([4, 1, 28, 28])
    """

    kind: str
    severity: int | None = None
    bounds: InitVar[tuple[float, float]] = (0.0, 1.0)
    mean: InitVar[Sequence[float] | float | None] = None
    std: InitVar[Sequence[float] | float | None] = None
    seed: int = 0

    def __post_init__(self, bounds: Any, mean: Any, std: Any) -> None:
        check_choice(self.kind, "kind", tuple(CORRUPTIONS))
        object.__setattr__(self, "_pixels", Pixels(bounds, mean, std))
        if self.severity is None:
            return
        check_integer(self.severity, "severity", least=1, most=5)
        if len(CORRUPTIONS[self.kind].grey) == 1:
            raise ValueError(f"{self.kind!r} has no severities; leave `severity` out")

    @property
    def name(self) -> str:
        """As in logged names."""
        return self.kind if self.severity is None else f"{self.kind}_{self.severity}"

    def __call__(self, images: Tensor, sample_ids: Tensor) -> Tensor:
        """The pictures (n, channels, height, width) corrupted; on their device, in their precision."""
        if images.ndim != 4 or min(images.shape[2:]) < 4:
            raise ValueError(
                f"corruptions need pictures (samples, channels, height, width) of 4 x 4 pixels or more, got shape "
                f"{tuple(images.shape)}; give a function of your own as a condition, or attacks"
            )
        pixels: Tensor = self._pixels.of(images).cpu()  # type: ignore[attr-defined]
        kind = CORRUPTIONS[self.kind]
        table = kind.colour if images.shape[1] == 3 and kind.colour else kind.grey
        parameters = table[(self.severity or kind.usual) - 1] if len(table) > 1 else table[0]
        unit = min(images.shape[2:]) / (28 if table is kind.grey else 32)
        with torch.device("cpu"):  # whatever the default device is
            parts = [
                kind.change(part, parameters, Draws(ids, self.seed, self.kind), unit).clamp(0, 1)
                for part, ids in zip(torch.split(pixels, _CHUNK), torch.split(sample_ids, _CHUNK), strict=True)
            ]
        inputs: Tensor = self._pixels.inputs(torch.cat(parts))  # type: ignore[attr-defined]
        return inputs.to(images)
