"""Handing the outputs of chosen layers on while a network runs, and removing every hook afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim.probe.layers import named_layers

__all__ = ["capture_outputs", "first_tensor"]


@contextmanager
def capture_outputs(
    network: nn.Module, layers: Sequence[str], receive: Callable[[str, Tensor | None], None]
) -> Iterator[Callable[[], None]]:
    """While active, calls ``receive(layer, output)`` each time one of the layers has run.

    The output is handed over inside the hook, before an in-place operation that follows can change it. It is the
    first tensor of what the layer returns, None if that holds no tensor. A layer used several times in one forward
    is received as ``name``, ``name[1]``, ``name[2]``, ... Calls made while gradients are computed (checkpointing runs
    layers again) are not received.

    Yields:
        A function to call before every forward, so that uses are counted afresh.

    Raises:
        KeyError: for a layer that the network does not have.
    """
    modules = named_layers(network)
    uses: dict[str, int] = {}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                return
            use = uses.get(name, 0)
            uses[name] = use + 1
            receive(name if use == 0 else f"{name}[{use}]", first_tensor(output))

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
