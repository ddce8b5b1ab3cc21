"""The weights that a network would have before any training."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from lightning_sim._guards import substituted_buffers

__all__ = ["untrained_weights"]


def untrained_weights(network: nn.Module) -> dict[str, Tensor]:
    """New initial parameters and buffers by name, drawn from the current random state; the network keeps its own.

    Modules say how by their ``reset_parameters``; the entries of parameters that belong to none are shuffled.
    """
    kept = [(module, dict(module._parameters)) for module in network.modules()]
    new: dict[Tensor, nn.Parameter] = {}  # what is tied stays tied
    try:
        with substituted_buffers(network), torch.no_grad():
            for module, parameters in kept:
                for name, value in parameters.items():
                    if value is not None and value not in new:
                        shuffled = value.flatten()[torch.randperm(value.numel(), device=value.device)].view_as(value)
                        new[value] = nn.Parameter(shuffled.clone(), requires_grad=value.requires_grad)
                    if value is not None:
                        module._parameters[name] = new[value]
            for module, _ in kept:
                for name in ("reset_parameters", "_reset_parameters"):
                    if callable(reset := getattr(module, name, None)):
                        with suppress(Exception):  # of parametrized modules, whose weights are no parameters
                            reset()
            own = (*network.named_parameters(), *network.named_buffers())
            return {name: value.detach().clone() for name, value in own}
    finally:
        for module, parameters in kept:
            for name, value in parameters.items():
                module._parameters[name] = value
