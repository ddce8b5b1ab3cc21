"""The Fisher information of a network's parameters on the probe: lengths of directions, and its diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim._centering import for_sums
from lightning_sim._fisher import by_filter, differentiable_kernels, squared_lengths, summed_diagonal
from lightning_sim.probe.gradients import require_logits
from lightning_sim.probe.guards import substituted_parameters
from lightning_sim.probe.runner import ProbeRunner, Summed

__all__ = ["floating_parameters", "summed_diagonals", "summed_lengths"]


def floating_parameters(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that have derivatives."""
    return {name: value for name, value in network.named_parameters() if value.is_floating_point()}


def summed_lengths(runner: ProbeRunner, network: nn.Module, direction: Mapping[str, Tensor] | None = None) -> Summed:
    """Squared Fisher-Rao lengths of a direction, or of the parameters themselves, (), to be summed."""

    def summed(batches: Iterator[tuple[Tensor, Any]], weights: Mapping[str, Tensor]) -> Tensor:
        parameters = _given(floating_parameters(network), weights)
        along = {name: (direction or parameters)[name].to(value) for name, value in parameters.items()}
        total = for_sums(torch.zeros((), device=runner.device))
        with differentiable_kernels(network):
            for ids, batch in batches:
                logits_at = partial(_logits_at, runner, network, ids, batch)
                total += for_sums(squared_lengths(logits_at, parameters, along).sum())
        return total

    return summed


def summed_diagonals(runner: ProbeRunner, network: nn.Module) -> Summed:
    """Diagonals of the Fisher information, (units,), to be summed over batches of one sample."""

    def summed(batches: Iterator[tuple[Tensor, Any]], weights: Mapping[str, Tensor]) -> Tensor:
        parameters = {k: v.requires_grad_() for k, v in _given(floating_parameters(network), weights).items()}
        with differentiable_kernels(network), torch.enable_grad(), substituted_parameters(network, parameters):
            logits = (_logits(runner, network, ids, batch)[0] for ids, batch in batches)
            return for_sums(by_filter(summed_diagonal(logits, list(parameters.values()))))

    return summed


def _logits_at(
    runner: ProbeRunner, network: nn.Module, ids: Tensor, batch: Any, parameters: Mapping[str, Tensor]
) -> Tensor:
    with substituted_parameters(network, parameters):
        return _logits(runner, network, ids, batch)


def _logits(runner: ProbeRunner, network: nn.Module, ids: Tensor, batch: Any) -> Tensor:
    """(samples, classes)."""
    with runner.context(network), torch.autocast(runner.device.type, enabled=False):
        output = runner.forward(network, batch)
    logits = require_logits(output, "it needs")
    if len(logits) != len(ids):
        got = f"for {len(ids)} samples is of shape {tuple(logits.shape)}"
        raise ValueError(f"it needs logits (samples, classes), and the output {got}")
    return logits


def _given(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of the names of `own`, where there are any, in the place and precision of `own`."""
    return {name: weights.get(name, value).to(value).detach() for name, value in own.items()}
