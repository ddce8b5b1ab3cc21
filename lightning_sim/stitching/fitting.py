"""Stitches by direct matching: the maps that bring the features of one network closest to those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim.functional import LinearMap
from lightning_sim.functional.stitching import MapOptions, map_of_gram
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.guards import evaluating, substituted_buffers, uncompiled
from lightning_sim.stitching.network import Party, Stitch
from lightning_sim.stitching.positions import gram_of, placed

__all__ = ["StitchingSums", "add_grams"]


class StitchingSums:
    """Sums over samples of pairs of layers, from which the maps of every kind come, in both directions.

    Constant memory, (1 + p1 + p2)^2 numbers for every pair of layers with p1 and p2 channels, and exact for any number
    of samples. Grids that differ are interpolated to the second network's.

    Args:
        first: a network.
        second: another one, or the same.
        pairs: layer of the first -> layer of the second.
        forward: ``forward(network, batch)`` runs either.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_sim.stitching import StitchingSums
        >>> first, second = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
        >>> sums = StitchingSums(first, second, {"0": "0", "1": "1"})
        >>> sums.add(torch.randn(100, 3).split(10))
        >>> sums.map("1", kind="reduced_rank", rank=2).weight.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        pairs: Mapping[str, str],
        *,
        forward: Callable[[nn.Module, Any], Any] = call_network,
    ) -> None:
        self._parties = Party(first, forward), Party(second, forward)
        self._pairs = dict(pairs)
        self._sums: dict[tuple[str, str], tuple[Tensor, int]] = {}

    def add(self, batches: Iterable[Any]) -> None:
        """Run both networks on the batches up to the last of the layers, and add up."""
        first, second = (party.network for party in self._parties)
        with (
            torch.no_grad(),
            uncompiled(),
            evaluating(first),
            evaluating(second),
            substituted_buffers(first),
            substituted_buffers(second),
        ):
            for batch in batches:
                add_grams(self._sums, *self._parties, list(self._pairs.items()), batch, batch)

    def map(self, layer: str, **options: Any) -> LinearMap:
        """The map from a layer of the first network to its counterpart.

        Args:
            layer: of the first network.
            options: as of :func:`lightning_sim.functional.stitching_map`.
        """
        gram, width = self._of(layer)
        return map_of_gram(gram, width, MapOptions(**options))

    def r2(self, layer: str, stitch: LinearMap | Stitch) -> float:
        """Share of the variance of the counterpart of a layer that any linear stitch explains.

        Args:
            layer: of the first network.
            stitch: whose weight and bias are taken.
        """
        gram, width = self._of(layer)
        bias, weight = (part.detach().to(gram) for part in (stitch.bias, stitch.weight))
        # Of [1 x y], the columns that add up to the residual, and to the distance of y from its mean.
        others = torch.eye(len(gram) - 1 - width).to(gram)
        residual = torch.cat([-bias[None], -weight, others])
        centred = torch.cat([-gram[:1, 1 + width :] / gram[0, 0], torch.zeros_like(weight), others])
        squares = [(columns * (gram @ columns)).sum() for columns in (residual, centred)]
        return float(1 - squares[0] / squares[1])

    def _of(self, layer: str) -> tuple[Tensor, int]:
        if not self._sums:
            raise ValueError("no samples were added, from which maps could be found")
        return self._sums[layer, self._pairs[layer]]


def add_grams(
    sums: dict[tuple[str, str], tuple[Tensor, int]],
    first: Party,
    second: Party,
    pairs: Sequence[tuple[str, str]],
    batch: Any,
    other_batch: Any,
) -> None:
    """Add the rows of one batch to the sums of every pair of layers, each with the width of its first side."""
    xs, _ = first.front(list(dict.fromkeys(layer for layer, _ in pairs)), batch)
    ys, _ = second.front(list(dict.fromkeys(layer for _, layer in pairs)), other_batch)
    for pair in pairs:
        y, grid = ys[pair[1]]
        x = placed(*xs[pair[0]], y.shape[2:], grid)
        gram = gram_of(x, y)
        held = sums.get(pair)
        sums[pair] = (gram if held is None else held[0] + gram, x.shape[1])
