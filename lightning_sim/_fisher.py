"""The Fisher information of a classifier's parameters, along a direction and on its diagonal, never as a matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["by_filter", "differentiable_kernels", "squared_lengths", "summed_diagonal"]

_MOST_ENTRIES = 2**24  # of one sample's derivatives that are held at once


def squared_lengths(
    logits_at: Callable[[dict[str, Tensor]], Tensor], parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> Tensor:
    r"""$d^T F d$ of every sample: the variance of the logits' derivative along d under the predictions.

    Args:
        logits_at: gives the logits (n, classes) with these parameters.
        parameters: where F is taken, detached.
        direction: d, of the same names, shapes and dtypes.

    Returns:
        (n,), in the wider of float32 and the dtype of the logits.
    """
    # Not torch.func.jvp, in which networks may not call requires_grad_(), as some with gradient checkpointing do.
    with torch.no_grad(), forward_ad.dual_level():
        dual: Any = forward_ad.make_dual
        moving = {name: dual(value, direction[name]) for name, value in parameters.items()}
        logits, derivative = forward_ad.unpack_dual(logits_at(moving))  # type: ignore[no-untyped-call]
        moved = torch.zeros_like(logits) if derivative is None else derivative
        dtype = torch.promote_types(logits.dtype, torch.float32)
        probabilities, moved = logits.to(dtype).softmax(1), moved.to(dtype)
        mean = (probabilities * moved).sum(1, keepdim=True)
        squared: Tensor = (probabilities * (moved - mean).square()).sum(1)
    return squared


def summed_diagonal(logits: Iterable[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    r"""The diagonal of F summed over samples, $\sum_x \sum_y p(y|x) (\partial_j \log p(y|x))^2$.

    Args:
        logits: (classes,) of one sample after the other, with their graph to the parameters.
        parameters: that require gradients.

    Returns:
        One tensor of the shape of each parameter, in the wider of float32 and its dtype.
    """
    totals = [torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32)) for value in parameters]
    at_once = max(1, _MOST_ENTRIES // max(1, sum(value.numel() for value in parameters)))
    for of_sample in logits:
        log_probabilities = of_sample.to(torch.promote_types(of_sample.dtype, torch.float32)).log_softmax(0)
        probabilities = log_probabilities.detach().exp()
        # Classes of probability zero, whose logits may be -inf, have no weight.
        for classes in torch.split(probabilities.nonzero().flatten(), at_once):
            gradients = _gradients(log_probabilities[classes], parameters)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    weights = probabilities[classes].reshape(-1, *[1] * total.ndim)
                    total += (weights * gradient.to(total.dtype).square()).sum(0)
    return totals


def by_filter(diagonal: Sequence[Tensor]) -> Tensor:
    """(units,): means over the weights of every output unit or filter; parameters of one dimension as they are."""
    return torch.cat([value.flatten(1).mean(1) if value.ndim > 1 else value.flatten() for value in diagonal])


@contextmanager
def differentiable_kernels(network: nn.Module) -> Iterator[None]:
    """Inside, layers run on kernels that have forward derivatives, where torch has any."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "enabled", backend.enabled)
                backend.enabled = False
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(warnings.catch_warnings())
        # torch compiles its own forward derivatives with torch.jit when they are first asked for.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", message="There is a performance drop because")
        yield


def _gradients(values: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of each of the values (k,): (k, ...) for every parameter, None for those that no value depends on."""
    try:
        directions = torch.eye(len(values), dtype=values.dtype, device=values.device)
        return torch.autograd.grad(
            values, parameters, directions, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # some backward pass cannot be batched
        rows = [torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) for value in values]
        return [None if rows[0][i] is None else torch.stack([row[i] for row in rows]) for i in range(len(parameters))]
