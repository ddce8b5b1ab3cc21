"""Calling a network on a batch, and finding the logits in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_sim.probe.capture import first_tensor

__all__ = ["Called", "call_network", "find_logits"]


def call_network(network: nn.Module, batch: Any) -> Any:
    """The network on the inputs of a batch: the first part of a tuple or list, the fitting keys of a mapping.

    A mapping is passed as keyword arguments, without the keys (labels, as a rule) that `forward` does not take; when
    `forward` takes none of the keys, the mapping itself is passed. Anything else is passed as it is.
    """
    if isinstance(batch, Mapping):
        parameters = inspect.signature(network.forward).parameters.values()
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return network(**batch)
        names = {parameter.name for parameter in parameters}
        arguments = {name: value for name, value in batch.items() if name in names}
        return network(**arguments) if arguments else network(batch)
    if isinstance(batch, tuple | list):
        return network(batch[0])
    return network(batch)


class Called(nn.Module):
    """The network, as ``network``, and the way to call it as one module, which `functional_call` can run."""

    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.network = network
        self._call = forward

    def forward(self, batch: Any) -> Any:
        """What the network gives for the batch."""
        return self._call(self.network, batch)


def find_logits(output: Any) -> Tensor | None:
    """The logits in a network's output: itself, its ``logits``, or its first tensor."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else first_tensor(output)
