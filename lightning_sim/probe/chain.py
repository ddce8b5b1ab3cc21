"""Finding out that a network is a chain of dense layers, whose weights can be compared without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchmetrics import Metric

from lightning_sim.probe.layers import named_layers, plain_name

__all__ = ["chain_weights", "find_chain"]


def find_chain(network: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any]) -> list[str]:
    """The names of the network's linear layers in the order in which they run, if they are a chain.

    They are one if all parameters belong to them, each runs once, and each takes what the one before gives, changed
    element by element at most, and nothing else. That is read off the derivatives of what each takes with respect to
    what those before it give, in one forward pass that is cut behind every layer.

    Args:
        network: in evaluation mode.
        batch: one batch.
        forward: ``forward(network, batch)`` runs it.

    Raises:
        ValueError: when they are no chain, with why.
    """
    layers = _linear_layers(network)
    inputs: list[Tensor] = []
    given: dict[str, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.clone().detach().requires_grad_()

    def source(part: Any) -> Any:
        if isinstance(part, Tensor) and part.is_floating_point():
            inputs.append(leaf(part))
            return inputs[-1].clone()  # which may be changed in place, where a leaf may not
        return part

    def hook(name: str, module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> Tensor:
        if name in given:
            raise ValueError(f"forward runs {name} more than once")
        if given:
            before = next(reversed(given))
            others = [*inputs, *(tensor for layer, tensor in given.items() if layer != before)]
            _require_link(name, (*arguments, *keywords.values())[0], before, given[before], others)
        given[name] = leaf(output)
        return given[name].clone()

    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_hook(partial(hook, name), with_kwargs=True))
        with torch.enable_grad():
            forward(network, tree_map(source, batch))
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        # Derivatives do not pass, through re-entrant checkpointing for instance.
        raise ValueError(f"it could not be followed ({type(error).__name__}: {error})") from error
    finally:
        for handle in handles:
            handle.remove()
    skipped = [name for name in layers if name not in given]
    if skipped:
        raise ValueError(f"forward skips {', '.join(skipped)}")
    return list(given)


def chain_weights(
    network: nn.Module, chain: Sequence[str], weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Linear layers -> their input-major weights (d_in, d_out) on the CPU, where they are there already as views.

    Args:
        network: that has the layers.
        chain: their names.
        weights: tensors to take instead of the network's own of the same names.
    """
    found = {plain_name(name): (name, module) for name, module in network.named_modules() if name}
    given = weights or {}
    return {
        layer: given.get(f"{name}.weight", module.weight).detach().T.cpu()
        for layer in chain
        for name, module in [found[layer]]
    }


def _linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    modules = named_layers(network)
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    theirs = {
        id(parameter)
        for module in (*layers.values(), *(m for m in network.modules() if isinstance(m, nn.PReLU | Metric)))
        for parameter in module.parameters()
    }
    stray = [plain_name(name) for name, parameter in network.named_parameters() if id(parameter) not in theirs]
    if stray or not layers:
        raise ValueError(f"{stray[0]} belongs to none" if stray else "there is none")
    for name, module in modules.items():
        own = {key for key, _ in module.named_parameters()}
        plain = type(module).forward is nn.Linear.forward and "weight" in own <= {"weight", "bias"}
        if (name in layers and not plain) or isinstance(module, nn.modules.batchnorm._NormBase):
            raise ValueError(f"{name}, of type {type(module).__name__}, is no plain linear layer")
    return layers


def _require_link(name: str, taken: Tensor, before: str, given: Tensor, others: Sequence[Tensor]) -> None:
    """Refuse a layer that takes anything but what the layer before gives, changed element by element."""
    # Products with powers of two are exact, so that those of a diagonal Jacobian are, too.
    generator = torch.Generator("cpu").manual_seed(0)
    factors = torch.randint(0, 8, taken.shape, generator=generator, device="cpu").exp2().to(taken)
    derivative: Callable[[Tensor], Any] = partial(
        torch.autograd.grad, taken, [given, *others], retain_graph=True, allow_unused=True
    )
    along, *elsewhere = derivative(factors) if taken.requires_grad else (None,)
    if any(found is not None for found in elsewhere):
        raise ValueError(f"{name} takes more than what {before}, which runs before it, gives: a skip connection")
    if along is None:
        raise ValueError(f"{name} does not take what {before}, which runs before it, gives")
    diagonal = derivative(torch.ones_like(taken))[0]
    if taken.numel() != given.numel() or not torch.allclose(
        along.flatten(), diagonal.flatten() * factors.flatten(), equal_nan=True
    ):
        raise ValueError(f"what {before} gives is mixed or normalised before {name} takes it")
