"""Handing the outputs of chosen layers on while a network runs, and removing every hook afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim.probe.layers import named_layers

__all__ = ["capture_outputs", "first_tensor", "replace_first_tensor"]


@contextmanager
def capture_outputs(
    network: nn.Module,
    layers: Sequence[str],
    receive: Callable[[str, Tensor | None], None],
    *,
    differentiable: bool = False,
) -> Iterator[Callable[[], None]]:
    """While active, calls ``receive(layer, output)`` each time one of the layers has run.

    The output is handed over inside the hook, before an in-place operation that follows can change it. It is the
    first tensor of what the layer returns, None if that holds no tensor. A layer used several times in one forward
    is received as ``name``, ``name[1]``, ``name[2]``, ... Calls made while gradients are computed (checkpointing runs
    layers again) are not received.

    Args:
        network: the network.
        layers: names of submodules.
        receive: called with the name and the output.
        differentiable: hand outputs over so that gradients with respect to them can be computed, in networks without
            trainable parameters too: the network goes on with a copy, which may be changed in place.

    Yields:
        A function to call before every forward, so that uses are counted afresh.

    Raises:
        KeyError: for a layer that the network does not have.
    """
    modules = named_layers(network)
    uses: dict[str, int] = {}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            # Recomputation must repeat what the forward did, so that the output is replaced there as well.
            if differentiable and tensor is not None and tensor.is_floating_point():
                tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                output = replace_first_tensor(output, tensor.clone())
            if torch._C._current_graph_task_id() == -1:
                use = uses.get(name, 0)
                uses[name] = use + 1
                receive(name if use == 0 else f"{name}[{use}]", tensor)
            return output if differentiable else None

        return hook

    handles = []
    try:
        for name in layers:
            handles.append(modules[name].register_forward_hook(hook_for(name)))
        yield uses.clear
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list, mapping or dataclass, searched in depth."""
    if isinstance(output, Tensor):
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        for part in output:
            found = first_tensor(part)
            if found is not None:
                return found
    return None


def replace_first_tensor(output: Any, replacement: Tensor) -> Any:
    """A copy of `output` with `replacement` in the place of what `first_tensor` finds in it."""
    if isinstance(output, Tensor):
        return replacement
    if isinstance(output, tuple | list):
        index = next(index for index, part in enumerate(output) if first_tensor(part) is not None)
        parts = [*output[:index], replace_first_tensor(output[index], replacement), *output[index + 1 :]]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    changed: Any = copy.copy(output)
    if isinstance(output, Mapping):
        key = next(key for key, part in output.items() if first_tensor(part) is not None)
        changed[key] = replace_first_tensor(output[key], replacement)
    else:
        names = [field.name for field in dataclasses.fields(output)]
        name = next(name for name in names if first_tensor(getattr(output, name)) is not None)
        object.__setattr__(changed, name, replace_first_tensor(getattr(output, name), replacement))
    return changed
