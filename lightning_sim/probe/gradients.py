"""Gradients of a loss with respect to what layers give, sample by sample, by one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim.probe.forward import find_logits, without_logits

__all__ = ["differentiable", "expected_loss", "gradients_at", "logits_problem", "require_logits", "total_loss"]

Objective = Callable[[Any, Any], Tensor]


def expected_loss(beta: float = 0.5) -> Objective:
    r"""What has the expected gradient of the negative log-likelihood, by which no labels are needed.

    With :math:`p = softmax(z)` at logits z and :math:`q \propto p^\beta`, held constant,

    .. math:: E_{y \sim q}[\nabla_z (-\log p_y)] = p - q

    so ``sum(z * (p - q))`` with p - q held constant has, for every layer and sample, the gradient
    :math:`E_{y \sim q}[\nabla (-\log p_y)]`, in a single backward pass whatever the number of classes. Sums over
    samples, as they do not depend on each other in evaluation mode, keep every sample's own gradient.

    Args:
        beta: tempers the predicted distribution: 0 for the uniform one; 1 would make every gradient zero.

    Returns:
        ``objective(output, batch)``, a scalar to differentiate.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, section 2; beta = 0.5 as there.
    """
    if not beta >= 0 or beta == 1:  # also NaN
        raise ValueError(
            f"`beta` must not be negative, nor 1, where the expected gradient p - q of every sample is zero; got {beta}"
        )

    def objective(output: Any, batch: Any) -> Tensor:
        logits = require_logits(output, "gradients by the expected loss need")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        with torch.no_grad():
            difference = torch.softmax(logits, 1) - torch.softmax(beta * logits, 1)
        # Where the logit is -inf both probabilities are zero.
        return (logits.masked_fill(logits == -torch.inf, 0) * difference).sum()

    return objective


def total_loss(loss: Callable[[Any, Any], Tensor]) -> Objective:
    """The sum of ``loss(output, batch)``, one value for every sample, as an objective.

    Raises:
        ValueError: from the objective, when the loss is not of shape (samples,).
    """

    def objective(output: Any, batch: Any) -> Tensor:
        losses = loss(output, batch)
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"`loss` must give one loss for every sample, shape (samples,), got {got}; for cross entropy: "
                'loss=lambda output, batch: F.cross_entropy(output, batch[1], reduction="none")'
            )
        return losses.to(torch.promote_types(losses.dtype, torch.float32)).sum()

    return objective


def logits_problem(logits: Tensor | None) -> str | None:
    """Why these are no logits of a choice between classes, in words, or None."""
    if logits is None:
        return "holds no tensor"
    if not logits.is_floating_point() or logits.ndim != 2 or logits.shape[1] < 2:
        return f"is {logits.dtype} of shape {tuple(logits.shape)}"
    return None


def require_logits(output: Any, what_needs: str) -> Tensor:
    """The logits (samples, classes) in a network's output.

    Raises:
        ValueError: when there are none.
    """
    logits = find_logits(output)
    reason = without_logits(output) if logits is None else logits_problem(logits)
    if logits is None or reason is not None:
        raise ValueError(f"{what_needs} logits (samples, classes), and the output {reason}")
    return logits


def gradients_at(objective: Tensor, captured: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradient of the scalar with respect to every captured tensor; None where it does not depend on one.

    Nothing is accumulated in any ``.grad``, and no parameter's gradient is computed. Releases the graph.

    Raises:
        ValueError: when a layer lies inside re-entrant checkpointing, through which there are no such gradients.
    """
    if not captured or not objective.requires_grad:
        return dict.fromkeys(captured)
    try:
        with torch.autocast(objective.device.type, enabled=False):
            found = torch.autograd.grad(objective, list(captured.values()), allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ValueError(
                "gradients cannot be computed through re-entrant gradient checkpointing; "
                "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            ) from error
        raise
    return dict(zip(captured, found, strict=True))


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """Gradients are recorded inside, also where the caller switched them off."""
    # cuDNN differentiates recurrent layers in training mode only.
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    enabled = torch.backends.cudnn.enabled and not recurrent
    with torch.inference_mode(False), torch.enable_grad(), _cudnn(enabled):
        yield


@contextmanager
def _cudnn(enabled: bool) -> Iterator[None]:
    previous = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = previous
