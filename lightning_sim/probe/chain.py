"""The weights of a network that is a chain of dense layers, for measures that need no data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["dense_chain"]


def dense_chain(network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor] | None:
    """Linear layers in the order of their definition -> input-major weights (d_in, d_out) on the CPU.

    Args:
        network: any network.
        weights: tensors to take instead of the network's own of the same names.

    Returns:
        None unless all parameters belong to linear layers, each of which takes what the one before gives.
    """
    chain: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            weight = (weights or {}).get(f"{name}.weight", module.weight)
            chain[name] = weight.detach().T.to("cpu", copy=True)
        elif not isinstance(module, nn.PReLU | Metric) and any(True for _ in module.parameters(recurse=False)):
            return None
    fits = all(before.shape[1] == after.shape[0] for before, after in itertools.pairwise(chain.values()))
    return chain if chain and fits else None
