"""The two parties of a stitch as a measure runs them: in the runner's context, with other weights than their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sim.functional import LinearMap
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.stitching.network import Party, Stitch

__all__ = ["explained", "made_stitch", "party"]


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

    def forward(network: nn.Module, batch: Any) -> Any:
        with runner.context(network):
            if weights is None:
                return runner.forward(network, batch)
            renamed = {f"network.{name}": value for name, value in weights.items()}
            return functional_call(_Called(network, runner.forward), renamed, (batch,))

    return Party(network, forward)


def made_stitch(linear: LinearMap | None, runner: ProbeRunner) -> Callable[[Tensor], Tensor]:
    """The map as a module on the device; none passes everything."""
    return nn.Identity() if linear is None else Stitch(linear).to(runner.device)


def explained(passed: Tensor, target: Tensor, means: Tensor | None, way: int) -> Tensor:
    """Squared residual of what a stitch gives, and squared distance of the features from the mean of the other half."""
    if means is None:
        return torch.full((2,), torch.nan, dtype=torch.float64, device=passed.device)
    target = target.to(passed.dtype)  # half precision is never accumulated in
    channels = target.shape[1]
    mean = (means[-channels:] if way == 0 else means[:channels]).to(target).view(-1, *[1] * (target.ndim - 2))
    return torch.stack([(passed - target).square_().sum(), (target - mean).square_().sum()]).double()
