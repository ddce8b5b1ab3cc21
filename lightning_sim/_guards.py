"""Running a network without leaving a trace on it or on the random state, and layer by layer."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "evaluating",
    "frozen",
    "is_sharded",
    "isolated_random_state",
    "on_device",
    "substituted_buffers",
    "substituted_parameters",
    "uncompiled",
    "whole",
]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule; each gets its own flag back, also after an exception.

    The flags are set directly: `train()` on the root would thaw layers that the user froze, and networks that
    override it (to merge adapters, say) would do more than change a flag.
    """
    with _off(network.modules(), "training"):
        yield


def is_sharded(network: nn.Module) -> bool:
    """Whether its parameters are spread over ranks, by FSDP2 or tensor parallelism, and a forward is a collective."""
    spread = any(hasattr(value, "device_mesh") for value in network.parameters())
    return spread or any(hasattr(module, "reshard") for module in network.modules())  # gathered by now


def whole(value: Tensor) -> Tensor:
    """The value, gathered where it is in shards, which every rank must ask for at once."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@contextmanager
def on_device(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network on the device, and back where its parameters were; shards are moved by who made them."""
    home = next((parameter.device for parameter in network.parameters()), device)
    moves = home != device and not is_sharded(network)
    if moves:
        network.to(device)
    try:
        yield
    finally:
        if moves:
            network.to(home)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No parameter gets a gradient from what is run inside; each gets its own flag back, also after an exception."""
    with _off(network.parameters(), "requires_grad"):
        yield


@contextmanager
def _off(holders: Iterable[object], flag: str) -> Iterator[None]:
    """A flag of all these is False inside; each gets its own back."""
    before = [(holder, getattr(holder, flag)) for holder in holders]
    try:
        for holder, _ in before:
            setattr(holder, flag, False)
        yield
    finally:
        for holder, value in before:
            setattr(holder, flag, value)


@contextmanager
def substituted_buffers(network: nn.Module, given: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Copies in the place of all buffers, for a forward that changes them also in evaluation mode.

    Afterwards, also after an exception, every module has its own tensors again, none added and none missing. They were
    never written to, so that graphs which hold them can still be differentiated.

    Args:
        network: the network.
        given: values to copy instead of those of the network's buffers of the same names.
    """
    given = given or {}
    kept: list[tuple[nn.Module, dict[str, Tensor | None], set[str]]] = [
        (module, dict(module._buffers.items()), set(module._non_persistent_buffers_set)) for module in network.modules()
    ]
    copies: dict[int, Tensor] = {}  # a buffer that several modules share stays shared
    storages: dict[int, Any] = {}  # and so does the memory of those that are views of each other
    try:
        for prefix, module in network.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is None:
                    continue
                value = given.get(f"{prefix}.{name}" if prefix else name)
                if id(buffer) not in copies:
                    own = buffer.detach()
                    copies[id(buffer)] = copy.deepcopy(own, storages) if value is None else value.to(own, copy=True)
                module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, buffers, non_persistent in kept:
            if list(module._buffers.keys()) != list(buffers):
                module._buffers.clear()
            for name, buffer in buffers.items():
                module.__dict__.pop(name, None)  # which would hide a buffer that was deleted and set anew
                module._buffers[name] = buffer
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(non_persistent)


@contextmanager
def substituted_parameters(network: nn.Module, given: Mapping[str, Tensor]) -> Iterator[None]:
    """`given` in the place of the parameters of these names, and of those tied to them; other names are ignored.

    Not `functional_call`, which ends with the forward: gradient checkpointing runs layers again after it.
    """
    if not given:  # FSDP2 may exchange parameters inside
        yield
        return
    named = network.named_parameters(remove_duplicate=False)
    values = {id(own): given[name] for name, own in named if name in given}
    kept = [(module, dict(module._parameters)) for module in network.modules()]
    try:
        for module, parameters in kept:
            module._parameters.update({name: values.get(id(own), own) for name, own in parameters.items()})  # type: ignore[misc]
        yield
    finally:
        for module, parameters in kept:
            module._parameters.update(parameters)


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Fixed random state of Python, NumPy and torch inside, the caller's state afterwards, also after an exception.

    Seeding makes random transforms of the probe the same in every pass.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [(set_state, get_state()) for get_state, set_state, _ in _device_generators()]
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not torch.manual_seed: it seeds devices that are not in use as well, and CUDA when it is first used.
        torch.default_generator.manual_seed(seed)
        for _, _, seed_all in _device_generators():
            seed_all(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for set_state, state in devices:
            set_state(state)


def _device_generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None], Callable[[int], None]]]:
    """What gets, sets and seeds the random state of all devices of a kind, for every kind that is in use."""
    for module in (torch.cuda, torch.xpu):
        if module.is_initialized():
            yield module.get_rng_state_all, module.set_rng_state_all, module.manual_seed_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled functions and modules run as they were written inside: compiled code calls no hooks added later."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes seconds
        yield
        return
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is not None:  # torch >= 2.6
        with set_stance("force_eager"):
            yield
        return
    from torch._dynamo import config

    previous = config.disable
    config.disable = True
    try:
        yield
    finally:
        config.disable = previous
