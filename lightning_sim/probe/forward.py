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

    A mapping is passed as keyword arguments, without the keys that `forward` does not take; when `forward` takes none
    of the keys, the mapping itself is passed. Anything else is passed as it is. ``labels`` are the targets: a network
    gets them only if its `forward` requires them, or if it is an encoder and decoder whose decoder starts from them.
    """
    if isinstance(batch, Mapping):
        parameters = inspect.signature(network.forward).parameters
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        arguments = {name: value for name, value in batch.items() if takes_all or name in parameters}
        if not arguments:
            return network(batch)
        if "labels" in arguments and not _needs_labels(network, batch, parameters.get("labels")):
            del arguments["labels"]
        return network(**arguments)
    if isinstance(batch, tuple | list):
        return network(batch[0])
    return network(batch)


def _needs_labels(network: nn.Module, batch: Mapping[str, Any], parameter: inspect.Parameter | None) -> bool:
    if parameter is not None and parameter.default is inspect.Parameter.empty:
        return True
    if not {"decoder_input_ids", "decoder_inputs_embeds"}.isdisjoint(batch):
        return False
    configurations = (getattr(module, "config", None) for module in network.modules())
    return any(getattr(configuration, "is_encoder_decoder", False) for configuration in configurations)


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
