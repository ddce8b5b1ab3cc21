"""What of a layer's output is a channel and what a position, and bringing the positions of two layers together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_sim._checks import working_dtype
from lightning_sim.functional.stitching import stitching_gram

__all__ = ["gram_of", "has_channels_first", "opened", "placed"]

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


def has_channels_first(module: nn.Module, output: Tensor) -> bool:
    """Whether the channels of a layer's output are its second dimension, and the others a grid, or else its last.

    Convolutions, batch norms and pooling have them there, dense layers and layer norms in the last. Of other layers,
    (samples, positions, channels) are tokens, and what has more dimensions is of a convolution.
    """
    return isinstance(module, _CHANNELS_FIRST) or (output.ndim > 3 and not isinstance(module, _CHANNELS_LAST))


def opened(module: nn.Module, output: Tensor) -> tuple[Tensor, bool]:
    """A layer's output as (samples, channels, positions...), and whether the positions are a grid.

    Raises:
        ValueError: for an output without channels.
    """
    if output.ndim < 2 or not output.is_floating_point():
        raise ValueError(f"a {type(module).__name__} gives {output.dtype} of shape {tuple(output.shape)}, no channels")
    grid = has_channels_first(module, output)
    return (output if grid else output.movedim(-1, 1)), grid and output.ndim > 2


def placed(x: Tensor, grid: bool, positions: Sequence[int], on_grid: bool) -> Tensor:
    """(samples, channels, positions...) brought to other positions; those of one grid on another by interpolation.

    Raises:
        ValueError: for positions that do not correspond.
    """
    if tuple(x.shape[2:]) == tuple(positions) and grid == on_grid:
        return x
    if grid and on_grid and x.ndim - 2 == len(positions) and len(positions) in _INTERPOLATIONS:
        return F.interpolate(x, tuple(positions), mode=_INTERPOLATIONS[len(positions)], align_corners=False)
    kinds = [
        f"{'x'.join(map(str, shape))} {'of a grid' if on else 'in a row'}" if len(shape) else "none"
        for shape, on in ((tuple(x.shape[2:]), grid), (tuple(positions), on_grid))
    ]
    raise ValueError(
        f"positions do not correspond ({kinds[0]}, and {kinds[1]} in the other layer); stitch layers that both have a "
        "grid, the same number of tokens, or one position per sample"
    )


def gram_of(x: Tensor, y: Tensor) -> Tensor:
    """The sums of :func:`stitching_gram` of (samples, channels, positions...) at the same positions, each a row."""
    sides = [side.to(working_dtype(torch.promote_types(x.dtype, y.dtype))) for side in (x, y)]
    rows = [side.movedim(1, 0).flatten(1).T if side.ndim > 2 else side for side in sides]
    return stitching_gram(*rows)
