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


class Capture:
    """What the hooks on a network's layers know of the forward that is running, and of the one before."""

    def __init__(self) -> None:
        self._uses: dict[bool, dict[str, int]] = {True: {}, False: {}}
        self._handed_on: dict[str, tuple[Tensor, int]] = {}
        self._left_alone: set[str] = set()

    def new_forward(self) -> None:
        """Count uses afresh, and give outputs that the last forward did not change in place without a copy."""
        for uses in self._uses.values():
            uses.clear()
        changed = self.changed()
        self._left_alone |= self._handed_on.keys() - changed
        self._left_alone -= changed
        self._handed_on.clear()

    def changed(self) -> set[str]:
        """Outputs that the network has changed in place since they were handed on."""
        return {name for name, (tensor, version) in self._handed_on.items() if tensor._version != version}

    def spoiled(self) -> set[str]:
        """Those of them of which there is no copy, because earlier forwards left them alone."""
        return self.changed() & self._left_alone

    def use(self, name: str, *, recomputed: bool) -> str:
        """How this use of a layer is called: by its name, then with ``[1]``, ``[2]``, ..."""
        uses = self._uses[recomputed]
        use = uses.get(name, 0)
        uses[name] = use + 1
        return name if use == 0 else f"{name}[{use}]"

    def handed_on(self, name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The output as gradients are taken with respect to it, and what the network goes on with."""
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        # Of a leaf it must be a copy: a leaf that requires gradients cannot be changed in place.
        goes_on = tensor if name in self._left_alone and not tensor.is_leaf else tensor.clone()
        self._handed_on.setdefault(name, (goes_on, goes_on._version))
        return tensor, goes_on


@contextmanager
def capture_outputs(
    network: nn.Module,
    layers: Sequence[str],
    receive: Callable[[str, Tensor | None], None],
    *,
    differentiable: bool = False,
) -> Iterator[Capture]:
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
            trainable parameters too. In the first forward the network goes on with copies; after it, with copies of
            those alone that it changed in place.

    Yields:
        What has to be told before every forward, see `Capture`.

    Raises:
        KeyError: for a layer that the network does not have.
    """
    modules = named_layers(network)
    capture = Capture()

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            tensor: Any = first_tensor(output)
            split = hasattr(tensor, "full_tensor")
            if split:  # over tensor-parallel ranks; only once, as parts of an embedding can be added only once
                tensor, mesh, kind = tensor.full_tensor(), tensor.device_mesh, type(tensor)
                output = replace_first_tensor(output, kind.from_local(tensor, mesh))
            recomputed = torch._C._current_graph_task_id() != -1
            used = capture.use(name, recomputed=recomputed)
            # Recomputation must repeat what the forward did, so that the output is replaced there as well.
            if differentiable and tensor is not None and tensor.is_floating_point():
                tensor, handed_on = capture.handed_on(used, tensor)
                output = replace_first_tensor(output, handed_on)
            if not recomputed:
                receive(used, tensor)
            return output if differentiable or split else None

        return hook

    handles = []
    try:
        for name in layers:
            # Before the hook by which a tensor-parallel layer hands on this rank's part alone.
            first = any(hasattr(value, "device_mesh") for value in modules[name].parameters(recurse=False))
            handles.append(modules[name].register_forward_hook(hook_for(name), prepend=first))
        yield capture
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
