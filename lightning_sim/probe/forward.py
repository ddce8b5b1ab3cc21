"""Calling a network on a batch, and finding the logits in what it returns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_sim.probe.capture import first_tensor

__all__ = ["call_network", "find_logits", "without_logits"]


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


def find_logits(output: Any) -> Tensor | None:
    """The logits in a network's output; None where nothing says which of its tensors they are.

    A tensor is taken for logits: a reconstruction (samples, width) cannot be told from them. So is what comes first in
    a tuple or list, apart from parts without tensors. A mapping or an object has them under ``logits`` or not at all.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple | list):
        return find_logits(next((part for part in output if first_tensor(part) is not None), None))
    return None


def without_logits(output: Any) -> str:
    """Words for an output in which there are no logits."""
    if isinstance(output, Mapping):
        return f"holds no logits, its keys are {', '.join(map(str, output)) or 'none'}"
    if dataclasses.is_dataclass(output):
        return f"holds no logits, its fields are {', '.join(field.name for field in dataclasses.fields(output))}"
    if isinstance(output, tuple | list):
        first = next((part for part in output if first_tensor(part) is not None), None)
        if first is not None:
            return without_logits(first)
    return f"holds no logits, it is of type {type(output).__name__}"
