"""Measures made of the Fisher information of a classifier's parameters on a set of inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sim._centering import undefined, widen
from lightning_sim._checks import check_flag, check_matrix, check_tensor
from lightning_sim._fisher import by_filter, differentiable_kernels, squared_lengths, summed_diagonal

__all__ = ["fisher_rao_distance", "fisher_rao_norm", "task2vec", "task2vec_similarity"]


def fisher_rao_norm(network: nn.Module, inputs: Tensor) -> Tensor:
    r"""Length of a classifier's parameters in the metric of its own predictions, $\sqrt{\theta^T F \theta}$.

    $F = E_x E_{y \sim p(y|x)} [\nabla \log p \nabla \log p^T]$ over the parameters. With $z = J\theta$, the derivative
    of the logits along the parameters, $\theta^T F \theta = E_x Var_{y \sim p}(z_y)$, so that F is never formed. In
    networks of L linear layers without biases and with ReLUs z is L times the logits.

    Shapes: (n, ...) inputs -> (). Range: at least 0; needs no labels. Invariant to moving a factor from one layer of
    such a network to another.

    Cost: one forward pass with forward derivatives.

    Args:
        network: gives logits (n, classes); in evaluation mode.
        inputs: (n, ...), passed to the network.

    Returns:
        A scalar in the wider of float32 and the dtype of the logits, detached.

    Raises:
        ValueError: when a part of the network is in training mode, or its output is no matrix of logits.

    References:
        Liang et al. 2019, "Fisher-Rao Metric, Geometry, and Complexity of Neural Networks".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import fisher_rao_norm
        >>> network = torch.nn.Linear(2, 2, bias=False).eval()
        >>> network.weight.data = torch.eye(2)
        >>> fisher_rao_norm(network, torch.tensor([[2.0, 0.0]]))  # p (1 - p) 2^2 with p = 0.88
        tensor(0.6481)
    """
    parameters = _parameters(network)
    _check_inputs(inputs)
    return _defined(_squared_length(network, parameters, parameters, inputs).sqrt())


def fisher_rao_distance(network: nn.Module, other: nn.Module, inputs: Tensor) -> Tensor:
    r"""How far apart two networks of one architecture are, in the metric of their predictions.

    $\sqrt{\frac{1}{2} d^T (F_a + F_b) d}$ with d the difference of the parameters and the Fisher information of each of
    both: the geodesic distance to leading order in d, symmetric. It does not see differences that change no prediction
    on `inputs`. Between networks trained from different starts, where d is large, it is no geodesic distance.

    Shapes, range, cost and errors as for `fisher_rao_norm`, twice the cost.

    Args:
        network: gives logits (n, classes); in evaluation mode.
        other: another with the same parameters by name and shape.
        inputs: (n, ...).

    Raises:
        ValueError: as `fisher_rao_norm`, and when names or shapes of the parameters differ.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import fisher_rao_distance
        >>> network = torch.nn.Linear(2, 2).eval()
        >>> fisher_rao_distance(network, network, torch.ones(3, 2))
        tensor(0.)
    """
    mine, theirs = _parameters(network, "network"), _parameters(other, "other")
    _check_inputs(inputs)
    shapes = [{name: tuple(value.shape) for name, value in found.items()} for found in (mine, theirs)]
    if shapes[0] != shapes[1]:
        names = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        raise ValueError(f"`network` and `other` must have the same parameters, these differ: {', '.join(names[:8])}")
    difference = {name: theirs[name].to(value) - value for name, value in mine.items()}
    squared = [_squared_length(at, of, difference, inputs) for at, of in ((network, mine), (other, theirs))]
    return _defined((sum(squared[1:], squared[0]) / 2).sqrt())


def task2vec(network: nn.Module, inputs: Tensor, *, average_filters: bool = True) -> Tensor:
    r"""A dataset as a vector: the diagonal of the Fisher information of a network's parameters on it.

    $F_{jj} = E_x \sum_y p(y|x) (\partial_j \log p(y|x))^2$, the sum over classes in full, so that no labels are drawn.

    Shapes: (n, ...) inputs -> (units,) with `average_filters`, the mean over the weights of every output unit or filter
    and every parameter without further dimensions by itself; else (parameters,). In the order of `named_parameters`.
    Range: at least 0.

    Cost: n forward passes of one sample and n x classes backward passes, those of one sample together.

    Args:
        network: gives logits (n, classes), each sample by itself; in evaluation mode.
        inputs: (n, ...).
        average_filters: as in the paper.

    Raises:
        ValueError: as `fisher_rao_norm`.

    References:
        Achille et al. 2019, "Task2Vec: Task Embedding for Meta-Learning".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import task2vec
        >>> task2vec(torch.nn.Linear(4, 3).eval(), torch.ones(5, 4)).shape
        torch.Size([6])
    """
    check_flag(average_filters, "average_filters")
    held = _parameters(network)
    _check_inputs(inputs)
    with differentiable_kernels(network), torch.enable_grad():
        parameters = {name: value.requires_grad_() for name, value in held.items()}
        logits = (_checked(functional_call(network, parameters, (sample,)))[0] for sample in torch.split(inputs, 1))
        means = [total / len(inputs) for total in summed_diagonal(logits, list(parameters.values()))]
    return _defined(by_filter(means) if average_filters else torch.cat([mean.flatten() for mean in means]))


def task2vec_similarity(a: Tensor, b: Tensor, *, joint_normalization: bool = True) -> Tensor:
    r"""Cosine similarity of two datasets' vectors from `task2vec` on one network.

    With `joint_normalization` the cosine of $a / (a + b)$ and $b / (a + b)$, so that parameters count alike whatever
    their scale; 1 minus it is the symmetric distance of the paper. Entries that are zero up to rounding in both are
    left out, such as those of biases that no prediction depends on (of the keys of attention).

    Shapes: (d,), (d,) -> (). Range: [0, 1], 1 for equal vectors. Only `joint_normalization=False` ignores the overall
    scale of a vector.

    Args:
        a: of one dataset.
        b: of another.
        joint_normalization: False gives the plain cosine.

    Raises:
        ValueError: unless both are finite, not negative and of one shape (d,).

    References:
        Achille et al. 2019, "Task2Vec: Task Embedding for Meta-Learning".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import task2vec_similarity
        >>> task2vec_similarity(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(0.)
    """
    check_flag(joint_normalization, "joint_normalization")
    check_tensor(a, "a", "(d,)")
    check_tensor(b, "b", "(d,)")
    for vector, name in ((a, "a"), (b, "b")):
        if vector.ndim != 1 or a.shape != b.shape:
            raise ValueError(f"`a` and `b` must have one shape (d,), got {tuple(a.shape)} and {tuple(b.shape)}")
        check_matrix(vector[None], name, form="(d,)")
        if bool((vector < 0).any()):
            raise ValueError(f"`{name}` must be a Fisher diagonal, and holds negative values")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    x, y = widen(a), widen(b)
    if joint_normalization:
        # Squares of gradients that ought to be zero.
        eps = max(torch.finfo(torch.promote_types(vector.dtype, torch.float32)).eps for vector in (a, b))
        kept = (x + y) > (8 * eps) ** 2 * (x + y).max()
        total = (x + y)[kept]
        x, y = x[kept] / total, y[kept] / total
    lengths = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    if not bool(lengths > 0):
        return undefined("`a` or `b` is zero", a.to(dtype))
    cosine: Tensor = (x @ y) / lengths
    return cosine.clamp(0, 1).to(dtype)


def _parameters(network: nn.Module, name: str = "network") -> dict[str, Tensor]:
    if not isinstance(network, nn.Module):
        raise ValueError(f"`{name}` must be a torch.nn.Module, got {type(network).__name__}")
    training = [where or type(module).__name__ for where, module in network.named_modules() if module.training]
    if training:
        raise ValueError(f"`{name}` must be in evaluation mode, {training[0]!r} is not; call .eval()")
    return {name: value.detach() for name, value in network.named_parameters()}


def _squared_length(
    network: nn.Module, parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    """d' F d at the parameters, by the variance of the logits' derivative along d under the predictions."""

    def logits_at(values: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(network, values, (inputs,))
        return _checked(output)

    with differentiable_kernels(network):
        return squared_lengths(logits_at, parameters, direction).mean()


def _checked(logits: object) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"`network` must return logits (samples, classes), got {shape}")
    return logits


def _check_inputs(inputs: Tensor) -> None:
    check_tensor(inputs, "inputs", "(n, ...)")
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"`inputs` must hold at least 1 sample in their first dimension, got {tuple(inputs.shape)}")


def _defined(value: Tensor) -> Tensor:
    """The value, after a warning where it holds NaN."""
    if bool(value.isnan().any()):
        undefined("the network's logits on `inputs`, or their derivatives, are not finite", value)
    return value
