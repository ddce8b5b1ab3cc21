"""The two parties of a stitch as a measure runs them: in the runner's context, with other weights than their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from lightning_sim._centering import for_sums
from lightning_sim.functional import LinearMap
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.stitching.network import Party, Stitch
from lightning_sim.stitching.positions import placed

__all__ = ["explained", "fitting", "made_stitch", "party"]


class _Called(nn.Module):
    """The network, as ``network``, and the way to call it as one module, which `functional_call` can run."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, batch: Any) -> Any:
        """What the network gives for the batch."""
        return self._call(self.network, batch)


def party(runner: ProbeRunner, network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Party:
    """The network as the runner runs it, with these weights instead of its own."""
    called = _Called(network, runner.forward)
    renamed = {f"network.{name}": value for name, value in (weights or {}).items()}

    def forward(network: nn.Module, batch: Any) -> Any:
        with runner.context(network):
            return functional_call(called, renamed, (batch,)) if renamed else called(batch)

    return Party(network, forward)


def made_stitch(linear: LinearMap | None, runner: ProbeRunner) -> Callable[[Tensor], Tensor]:
    """The map as a module on the device; none passes everything."""
    return nn.Identity() if linear is None else Stitch(linear).to(runner.device)


def fitting(
    parties: Sequence[Party], pairs: Iterable[tuple[str, str]], batches: Sequence[Any]
) -> dict[tuple[str, str], tuple[int, int, int] | str]:
    """Channels of both layers of a pair, and rows of a batch; words where they do not fit together. A run per layer."""

    @functools.cache
    def front(way: int, layer: str) -> tuple[Tensor, bool]:
        with torch.no_grad():
            return parties[way].front([layer], batches[way])[0][layer]

    found: dict[tuple[str, str], tuple[int, int, int] | str] = {}
    for pair in pairs:
        try:
            (x, grid), (y, on_grid) = (front(way, layer) for way, layer in enumerate(pair))
            placed(x, grid, y.shape[2:], on_grid)
            found[pair] = x.shape[1], y.shape[1], y[:, 0].numel()
        except ValueError as error:
            found[pair] = str(error)
    return found


def explained(passed: Tensor, target: Tensor, means: Tensor, way: int) -> Tensor:
    """Squared residual of what a stitch gives, and squared distance of the features from the mean of the other half."""
    target = target.to(passed.dtype)  # half precision is never accumulated in
    channels = target.shape[1]
    mean = (means[-channels:] if way == 0 else means[:channels]).to(target).view(-1, *[1] * (target.ndim - 2))
    sides = passed, mean.expand_as(target)
    return for_sums(torch.stack([F.mse_loss(side, target, reduction="sum") for side in sides]))
