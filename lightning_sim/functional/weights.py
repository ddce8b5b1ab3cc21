"""Similarity of two networks of dense layers from their weights, without data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_sim._centering import center_columns, undefined, unit_scale, widen
from lightning_sim._checks import check_flag, check_matrix

__all__ = ["weight_centered_kernel_alignment"]

# Where torch defines what may stand between linear layers: nothing that mixes coordinates, nothing with
# weights. Modules that do not come from torch are taken for activations when they hold no parameters.
_BETWEEN_LAYERS = {
    f"torch.nn.modules.{name}" for name in ("activation", "dropout", "flatten", "linear", "loss", "module")
}


def weight_centered_kernel_alignment(
    weights_a: Sequence[Tensor] | nn.Module, weights_b: Sequence[Tensor] | nn.Module, *, center: bool = True
) -> Tensor:
    r"""Linear CKA of what each prefix of two chains of dense layers makes of the input coordinates (wCKA).

    $wCKA_{ij} = \|P_i^T Q_j\|_F^2 / (\|P_i^T P_i\|_F \|Q_j^T Q_j\|_F)$ with $P_i = W_1 W_2 \cdots W_i$ of one
    network and $Q_j$ likewise of the other, columns centred. A row of P belongs to an input coordinate, which
    takes the place of a sample: P_i is what the network up to layer i, made linear, returns for the basis
    vectors. Activations and biases do not enter. Products are rescaled after every layer, which cancels in
    the ratio, so that deep chains neither under- nor overflow.

    Shapes: weights (d_0, d_1), (d_1, d_2), ... -> (layers of a, layers of b). Widths and depths may differ,
    d_0 may not. Range: [0, 1], no units. Invariant to permutations of hidden units, to rescalings of hidden
    units that the next layer undoes (for the prefixes that do not end between the two), to isotropic scaling
    of any weight, to orthogonal maps of the outputs of a prefix and to joint permutations of the input
    coordinates. It is a biased CKA: between unrelated networks it falls as d_0 grows over the width (whole
    chains of random networks of width 32: about 0.04 at d_0 = 64 and 0.003 at 784).

    Cost: O(d_0 d_i d_i+1) for every layer and O(d_0 d_i d_j) for every pair of layers, in float64 where the
    device has it; memory O(d_0 sum of widths).

    Args:
        weights_a: weights of one network in the order of its layers, input-major (a layer computes x @ W;
            `torch.nn.Linear` stores the transpose), or a module made of `torch.nn.Linear` layers, registered
            in the order in which they are applied. Activations, dropout, identities and flattening may stand
            between them; a skip connection cannot be seen from the outside, and must not be there.
        weights_b: the same of the other network.
        center: centre the columns of the products over the input coordinates.

    Returns:
        A matrix in the widest of float32 and the weights' dtypes, differentiable; NaN, with a warning that
        names the first such layer, for prefixes without variance over the input coordinates.

    Raises:
        ValueError: for weights that are not finite floating-point matrices, that do not follow on each other,
            or whose first ones take inputs of different widths; for a module that holds other layers, or
            none.

    References:
        Linear CKA: Kornblith et al. 2019, eq. 4, of weights chained from the inputs on.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import weight_centered_kernel_alignment
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> weight_centered_kernel_alignment(net, [net[0].weight.T]).shape
        torch.Size([2, 1])
    """
    check_flag(center, "center")
    chain_a, chain_b = _chain(weights_a, "weights_a"), _chain(weights_b, "weights_b")
    if len(chain_a[0]) != len(chain_b[0]):
        raise ValueError(
            "`weights_a` and `weights_b` must take inputs of the same width, got first weights of shapes "
            f"{tuple(chain_a[0].shape)} and {tuple(chain_b[0].shape)} (input-major)"
        )
    products_a, products_b = (_cumulative_products(chain, center=center) for chain in (chain_a, chain_b))
    for name, products in (("weights_a", products_a), ("weights_b", products_b)):
        dead = [layer for layer, product in enumerate(products) if not bool(product.any())]
        if dead:
            undefined(f"the product of `{name}` up to [{dead[0]}] has no variance over inputs", products[0])
    cross = torch.stack([torch.stack([_squared_norm(p, q) for q in products_b]) for p in products_a])
    norms_a, norms_b = (
        torch.stack([_squared_norm(p, p) for p in products]).sqrt() for products in (products_a, products_b)
    )
    dtype = functools.reduce(torch.promote_types, (weight.dtype for weight in (*chain_a, *chain_b)))
    return (cross / norms_a[:, None] / norms_b).clamp_max(1).to(dtype)


def _cumulative_products(weights: Sequence[Tensor], *, center: bool) -> list[Tensor]:
    """W_1, W_1 W_2, ... (d_0, d_i) up to scale, columns centred if asked; zero where rounding is left."""
    # Centring the rows commutes with a product from the right.
    products = [unit_scale(center_columns(weights[0]) if center else widen(weights[0]))]
    for weight in weights[1:]:
        last, factor = products[-1], widen(weight)
        product = last @ factor
        magnitude = last.detach().abs() @ factor.detach().abs()
        # Of the product, and of the weights as they were given, which errs by half an eps of each at most.
        rounding = (torch.finfo(product.dtype).eps * len(factor) + torch.finfo(weight.dtype).eps) * magnitude
        products.append(unit_scale(product.masked_fill(product.detach().abs() <= rounding, 0)))
    return products


def _squared_norm(p: Tensor, q: Tensor) -> Tensor:
    """||p' q||_F^2 of (d, i) and (d, j), by the cheaper of the two sides."""
    d, i, j = *p.shape, q.shape[1]
    return (p.T @ q).square().sum() if i * j <= d * (i + j) else ((p @ p.T) * (q @ q.T)).sum()


def _chain(weights: Sequence[Tensor] | nn.Module, name: str) -> list[Tensor]:
    """The input-major weights of one network, after checks."""
    if isinstance(weights, nn.Module):
        weights = list(_linear_weights(weights, name))
    if not isinstance(weights, Iterable):
        raise ValueError(f"`{name}` must be a sequence of weights or a torch.nn.Module, got {type(weights).__name__}")
    chain = [check_matrix(w, f"{name}[{layer}]", form="(d_in, d_out)") for layer, w in enumerate(weights)]
    if not chain:
        raise ValueError(f"`{name}` must hold at least one linear layer, got none")
    for layer, (before, after) in enumerate(itertools.pairwise(chain)):
        if before.shape[1] != len(after):
            raise ValueError(
                f"`{name}[{layer + 1}]` must take the {before.shape[1]} outputs of `{name}[{layer}]`, got "
                f"shapes {tuple(before.shape)} and {tuple(after.shape)}; weights are input-major, "
                "(d_in, d_out), while torch.nn.Linear stores the transpose"
            )
    return chain


def _linear_weights(module: nn.Module, name: str) -> Iterator[Tensor]:
    """The weights of the linear layers in `module`, input-major, in the order of registration."""
    if isinstance(module, nn.Linear):
        yield module.weight.T
        return
    # Unlike children(), this yields a layer as often as it is used.
    children = [(key, child) for key, child in module._modules.items() if child is not None]
    bases = (base.__module__ for base in type(module).__mro__)
    origin = next(base for base in bases if base.startswith("torch.nn.modules."))
    has_weights = any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.PReLU)
    if has_weights or not (children or origin in _BETWEEN_LAYERS):
        raise ValueError(
            f"`{name}` must be made of torch.nn.Linear layers with activations, dropout, identities or "
            f"flattening between them, got a {type(module).__name__}; give input-major weights instead"
        )
    for key, child in children:
        yield from _linear_weights(child, f"{name}.{key}")
