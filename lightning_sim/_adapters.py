"""Layers that an adapter wraps, as PEFT does: what the adapter has added, and how to run the layer without it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["absent_adapters", "only_adapters_with_weights"]


def absent_adapters(network: nn.Module, weights: Collection[str]) -> dict[str, set[str]]:
    """Wrapped layers of which there are the weights of the layer alone -> the names of what the adapter adds.

    Args:
        network: the network.
        weights: names of parameters and buffers that are at hand.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module._modules.get("base_layer"), nn.Module):
            inside = {f"{name}.{own}".removeprefix(".") for own in module.state_dict()}
            base = {own for own in inside if own.startswith(f"{name}.base_layer.".removeprefix("."))}
            if not base.isdisjoint(weights) and (inside - base).isdisjoint(weights):
                found[name] = inside - base
    return found


@contextmanager
def only_adapters_with_weights(network: nn.Module, weights: Collection[str]) -> Iterator[None]:
    """While active, layers of which there are the weights of the layer alone run without their adapters."""
    replaced: list[tuple[dict[str, Any], Any]] = []
    try:
        for name in absent_adapters(network, weights):
            module = network.get_submodule(name)
            replaced.append((module.__dict__, module.__dict__.get("forward")))
            module.__dict__["forward"] = module.base_layer
        yield
    finally:
        for attributes, before in replaced:
            if before is None:
                del attributes["forward"]
            else:
                attributes["forward"] = before
