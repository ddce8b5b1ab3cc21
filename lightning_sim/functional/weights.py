"""Similarity of two networks from their weights, without data; of chains of dense layers as the wCKA paper has it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_sim._centering import center_columns, undefined, unit_scale, widen
from lightning_sim._checks import check_flag, check_matrix
from lightning_sim._precision import full_precision
from lightning_sim.functional.open_gates import open_gate_alignment, open_gate_kernels

__all__ = [
    "ChainKernels",
    "chain_alignment",
    "chain_kernels",
    "check_chain",
    "weight_centered_kernel_alignment",
]

_ROWS = 128  # of a kernel, and
_LAYERS = 8  # of a chain that are computed together, and
_ENTRIES = 1 << 12  # of kernels over which float32 is summed up

# Where torch defines what may stand between linear layers: nothing that mixes coordinates, nothing with
# weights. Modules that do not come from torch are taken for activations when they hold no parameters.
_BETWEEN_LAYERS = {
    f"torch.nn.modules.{name}" for name in ("activation", "dropout", "flatten", "linear", "loss", "module")
}


def weight_centered_kernel_alignment(
    weights_a: Sequence[Tensor] | nn.Module,
    weights_b: Sequence[Tensor] | nn.Module,
    *,
    center: bool = True,
    input_shape: Sequence[int] | None = None,
    example: Any = None,
    **open_gates: Any,
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

    Cost: with r = min(d_0, d_1), O(d_0 r^2) once, in float64 where the device has it, and O(r d_i (d_i+1 + r)) for
    every layer and O(r^2) for every pair of layers in the precision of the weights: the columns of all products lie in
    the span of those of the first weight. Memory O(r^2) for every layer of b, in the dtype of its weights.

    Networks of any other layers, given the shape of an input, are compared by what they make of the basis vectors with
    every gate open, by the unbiased CKA over 64 signed sums of input coordinates; `open_gate_kernels` says more, and
    names the layers. With ``estimator="biased", coordinates=None`` that equals the above on a chain.

    Args:
        weights_a: weights of one network in the order of its layers, input-major (a layer computes x @ W;
            `torch.nn.Linear` stores the transpose), or a module made of `torch.nn.Linear` layers, registered
            in the order in which they are applied. Activations, dropout, identities and flattening may stand
            between them; a skip connection cannot be seen from the outside, and must not be there.
        weights_b: the same of the other network.
        center: centre the columns of the products over the input coordinates.
        input_shape: of one input, for two modules of any layers.
        example: a batch of inputs in its place, for two modules that take several, or token ids.
        open_gates: ``layers``, ``coordinates``, ``estimator`` and ``seed`` of `open_gate_kernels`.

    Returns:
        A matrix in the widest of float32 and the weights' dtypes, differentiable once (not with an input shape); NaN,
            with a warning that names the first such layer, for prefixes without variance over the input coordinates.

    Raises:
        ValueError: for weights that are not finite floating-point matrices, that do not follow on each other,
            or whose first ones take inputs of different widths; for a module that holds other layers, or
            none; with an input shape, for what is not linear with open gates, with the layer.

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
    if input_shape is not None or example is not None:
        if not (isinstance(weights_a, nn.Module) and isinstance(weights_b, nn.Module)):
            raise ValueError("`weights_a` and `weights_b` must be modules where an input is given, not weights")
        sides = {"weights_a": weights_a, "weights_b": weights_b}
        return _with_open_gates(sides, example=example, input_shape=input_shape, center=center, **open_gates)
    if open_gates:
        raise ValueError(f"`{next(iter(open_gates))}` needs `input_shape` or `example`; chains of weights have none")
    chain_a, chain_b = check_chain(weights_a, "weights_a"), check_chain(weights_b, "weights_b")
    if len(chain_a[0]) != len(chain_b[0]):
        raise ValueError(
            "`weights_a` and `weights_b` must take inputs of the same width, got first weights of shapes "
            f"{tuple(chain_a[0].shape)} and {tuple(chain_b[0].shape)} (input-major)"
        )
    matrix: Tensor
    matrix, dead_b = _Alignment.apply(center, len(chain_a), *chain_a, *chain_b)  # type: ignore[no-untyped-call]
    for name, dead in (("weights_a", matrix[:, ~dead_b].isnan().any(1)), ("weights_b", dead_b)):
        if bool(dead.any()):
            undefined(f"the product of `{name}` up to [{int(dead.int().argmax())}] has no variance over inputs", matrix)
    return matrix.to(_dtype([*chain_a, *chain_b]))


def _with_open_gates(sides: dict[str, nn.Module], **options: Any) -> Tensor:
    found = {name: open_gate_kernels(network, **options) for name, network in sides.items()}
    value = open_gate_alignment(found["weights_a"], found["weights_b"])[0]
    for name, kernels in found.items():
        if bool((dead := kernels.kernels[:, 0, 0].isnan()).any()):
            layer = kernels.layers[int(dead.int().argmax())]
            undefined(f"`{name}` has no variance over the inputs at {layer}", value, stacklevel=4)
    dtype = _dtype([torch.zeros(()), *sides["weights_a"].parameters(), *sides["weights_b"].parameters()])
    return value.to(dtype)


class _Alignment(torch.autograd.Function):
    """The value from kernels of each side in its own coordinates; its derivative, when asked for, in those of both."""

    @staticmethod
    def forward(ctx: Any, center: bool, depth: int, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.center, ctx.depth = center, depth
        ctx.save_for_backward(*weights)
        chain_a, chain_b = weights[:depth], weights[depth:]
        others = chain_kernels(chain_b, center=center)
        dead_b = others.kernels[:, 0].isnan()
        ctx.mark_non_differentiable(dead_b)
        return chain_alignment(chain_a, others, center=center), dead_b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(gradient.device), torch.enable_grad():
            weights = [weight.detach().requires_grad_() for weight in ctx.saved_tensors]
            chains = weights[: ctx.depth], weights[ctx.depth :]
            # What a derivative adds to one side lies in the span of both.
            basis = _basis(torch.cat([_first(chain, center=ctx.center) for chain in chains], dim=1))
            kernels = [
                [_packed(product) for product in _products(chain, center=ctx.center, basis=basis)] for chain in chains
            ]
            a, b = (torch.stack([kernel / _norm(kernel) for kernel in side]) for side in kernels)
            value = (a @ b.T).clamp_max(1)
        return None, None, *torch.autograd.grad(value, weights, gradient)


class ChainKernels(NamedTuple):
    r"""What of a chain another is compared with: the kernels $P_l P_l^T$, in coordinates in which they are small.

    Attributes:
        basis: (d_0, r), orthonormal, of the columns of the first weight; None for the coordinates of the inputs, where
            there are no more of them than columns.
        kernels: (layers, entries), of norm 1, as `_packed`; NaN for a product without variance.
    """

    basis: Tensor | None
    kernels: Tensor


def chain_kernels(chain: Sequence[Tensor], *, center: bool = True) -> ChainKernels:
    """The kernels of all prefixes of a checked chain, in the dtype of its weights."""
    dtype = _dtype(chain)
    with full_precision(chain[0].device):
        basis = _basis(_first(chain, center=center).to(dtype))
        kernels = torch.empty(0, device="cpu")
        for layer, product in enumerate(_products(chain, center=center, basis=basis)):
            kernel = _packed(product.to(dtype))
            if layer == 0:
                kernels = kernel.new_empty(len(chain), len(kernel))  # filled in place: they may be many
            torch.div(kernel, _norm(kernel).to(dtype), out=kernels[layer])
    return ChainKernels(basis, kernels)


def chain_alignment(chain: Sequence[Tensor], others: ChainKernels, *, center: bool = True) -> Tensor:
    """wCKA (layers, layers of the other) of all prefixes of a checked chain with those of another, in float64."""
    dtype = _dtype(chain)
    rows: list[Tensor] = []
    with full_precision(chain[0].device):
        basis = _basis(_first(chain, center=center).to(dtype))
        turn = _turn(basis, others.basis)
        products = (product.to(dtype) for product in _products(chain, center=center, basis=basis))
        while block := list(itertools.islice(products, _LAYERS)):
            own = torch.stack([_packed(product) for product in block])
            kernels = own if turn is None else torch.stack([_packed(turn @ product) for product in block])
            parts = zip(*(torch.split(side, _ENTRIES, dim=1) for side in (kernels, others.kernels)), strict=True)
            inner = torch.stack([widen(mine @ theirs.to(mine).T) for mine, theirs in parts]).sum(0)
            rows.append(inner / torch.stack([_norm(kernel) for kernel in own])[:, None])
    matrix: Tensor = torch.cat(rows).clamp_max(1)
    return matrix


def _norm(kernel: Tensor) -> Tensor:
    # The sum of as many squares would lose digits in float32.
    norm: Tensor = torch.linalg.vector_norm(kernel, dtype=widen(kernel[:0]).dtype)
    return norm


def _dtype(weights: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (weight.dtype for weight in weights))


def _first(chain: Sequence[Tensor], *, center: bool) -> Tensor:
    # Centring the rows commutes with a product from the right.
    return unit_scale(center_columns(chain[0]) if center else widen(chain[0]))


@torch.no_grad()
def _basis(columns: Tensor) -> Tensor | None:
    """An orthonormal basis of the columns (d, i); None for that of the rows, where there are not more of these."""
    return torch.linalg.qr(columns).Q if columns.shape[1] < len(columns) else None


def _turn(basis: Tensor | None, other: Tensor | None) -> Tensor | None:
    """From coordinates of one basis to those of the other; None where both are those of the inputs."""
    if basis is None or other is None:
        return basis if other is None else other.T
    return other.to(basis).T @ basis


def _products(chain: Sequence[Tensor], *, center: bool, basis: Tensor | None) -> Iterator[Tensor]:
    """W_1, W_1 W_2, ... (r, d_i) in a basis, up to scale, columns centred if asked; zero where rounding is left."""
    first, dtype = _first(chain, center=center), torch.promote_types(_dtype(chain), torch.float32)
    product = (first if basis is None else basis.to(first).T @ first).to(dtype)
    sizes = product.detach().square().sum(0).sqrt()
    yield product
    for weight in chain[1:]:
        factor = unit_scale(weight.to(dtype))
        product = product @ factor
        # Of the product, by some eps of all that is added up; and of the weights as given, by half an eps at most.
        rounding = 8 * torch.finfo(dtype).eps + torch.finfo(weight.dtype).eps
        bounds, sizes = rounding * (sizes @ factor.detach().abs()), product.detach().square().sum(0).sqrt()
        if bool((lost := sizes <= bounds).any()):
            product = product.masked_fill(lost, 0)
        scale = product.detach().abs().amax()
        scale = torch.where(scale > 0, scale, 1.0)
        product, sizes = product / scale, sizes.masked_fill(lost, 0) / scale
        yield product


def _packed(product: Tensor) -> Tensor:
    """P P' of (r, d) as a vector: rows from the diagonal on, so scaled that inner products count both triangles."""
    strips = []
    for start in range(0, len(product), _ROWS):
        strip = product[start : start + _ROWS] @ product[start:].T
        strip[:, _ROWS:] *= 2**0.5
        strips.append(strip.flatten())
    return torch.cat(strips)


def check_chain(weights: Sequence[Tensor] | nn.Module, name: str) -> list[Tensor]:
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
