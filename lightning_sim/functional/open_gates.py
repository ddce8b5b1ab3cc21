"""Similarity of two networks of any layers from their weights, without data: what is left of them with open gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sim._arguments import check_integer, described, listed
from lightning_sim._checks import check_choice, check_flag, working_dtype
from lightning_sim._guards import (
    evaluating,
    isolated_random_state,
    substituted_buffers,
    substituted_parameters,
    uncompiled,
)
from lightning_sim._precision import full_precision
from lightning_sim.functional._coordinates import Coordinates, kernel_of, pushed, rows_given
from lightning_sim.functional._open_gates import OpenGates, open_attention

__all__ = ["OpenGateKernels", "open_gate_alignment", "open_gate_kernels"]


class OpenGateKernels(NamedTuple):
    """What of one network others are compared with.

    Attributes:
        layers: names in the order in which they run, ``name[1]`` for the second use of a layer.
        kernels: (layers, M, M) in float64, each of norm 1; NaN for a layer without variance over the coordinates.
        size: d, how many input coordinates there are; the M are signed sums of them where they are fewer.
        seed: of these signs.
    """

    layers: tuple[str, ...]
    kernels: Tensor
    size: int
    seed: int


def open_gate_kernels(
    network: nn.Module,
    example: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    coordinates: int | None = 64,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    center: bool = True,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    strict: bool = True,
) -> OpenGateKernels:
    r"""Kernels of what the network up to each layer, with every gate open, makes of the input coordinates.

    With open gates a network is affine: activations are identities, batch normalisation is a scale by what it has
    recorded, other normalisation takes the mean off and scales by its weight, max pooling is mean pooling, softmax is
    uniform over what is not masked, attention the mean of the values, and dropout nothing. What is left of constants
    (biases, positions, class tokens) is taken off. $P_l = f_l(I)$ has a row for every input coordinate, and
    $K_l = P_l P_l^T$, centred. Where there are more than `coordinates` of them, signed sums of disjoint random sets
    of coordinates take their place, centred exactly by $f_l(1)$, the same for every network and seed.

    Coordinates are the entries of one input (of the first tensor of `example`). Of token ids, they are the pairs of a
    position and a token: rows are embedded tokens, (sums of) rows of the weight of the first embedding that runs.

    One forward pass of `coordinates` + 3 rows, in evaluation mode and float32 or wider. Nothing of the network
    changes, nor of the random state. The pass is tested to be linear.

    Limits: the first layers on one input channel tell about as many coordinates apart as their kernels have places, so
    that untrained pairs scatter by 0.2 to 0.3 there, and behind pooling untrained networks share a kernel: look
    at pairs of untrained networks beside. The scale of batch normalisation comes from data.

    Args:
        network: any module; batch normalisation must have recorded statistics, which come from data.
        example: a batch that the network runs on, whose first sample is taken for shapes, and masks.
        input_shape: in its place, the shape of one input, without the batch.
        layers: names of modules; every module with a weight of two dimensions or more, but embeddings, if None.
        coordinates: M; None for all of them, which takes as many rows. Kernels take 8 M² bytes for every layer.
        estimator: of the CKA that the kernels are for. The biased one reads 0.95 for untrained convolutional networks.
        center: centre P_l over the coordinates.
        seed: of the signed sums.
        weights: parameters and buffers by name, in the place of the network's own.
        forward: ``forward(network, batch)``; by default a mapping is passed as keywords, a tuple or list as arguments.
        strict: refuse `layers` that do not run, or give nothing that has a row for every input; else they are left out.

    Raises:
        ValueError: for layers that do not run, and for what is not linear with open gates, with the layer.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import open_gate_kernels
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> found = open_gate_kernels(net, input_shape=(3, 8, 8), coordinates=16)
        >>> found.layers, found.kernels.shape, found.size
        (('0', '2'), torch.Size([2, 16, 16]), 192)
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"`network` must be a torch.nn.Module, got {described(network)}")
    check_choice(estimator, "estimator", ("unbiased", "biased"))
    check_flag(center, "center")
    count = None if coordinates is None else check_integer(coordinates, "coordinates", least=4)
    seed = check_integer(seed, "seed", least=0)
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    kind = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), torch.zeros((), device="cpu"))
    kind = kind.new_zeros((), dtype=working_dtype(kind.dtype))
    if (example is None) == (input_shape is None):
        raise ValueError("give either `input_shape`, the shape of one input without the batch, or an `example` batch")
    if input_shape is not None:
        example = kind.new_zeros(1, *(check_integer(side, "input_shape", least=1) for side in input_shape))
    batch, embedded, known = pushed(example, count, seed, kind)
    # Half precision has too few digits for a test of linearity.
    narrow = {name: value for name, value in tensors.items() if value.dtype in (torch.float16, torch.bfloat16)}
    given = {name: value.to(kind) for name, value in narrow.items()}
    for name, value in (weights or {}).items():
        given[name] = value.to(kind) if value.is_floating_point() else value
    run = partial(forward or _call, network, batch)
    found: dict[str, Tensor] = {}
    uses: dict[str, int] = {}

    def keep(name: str, rows: Tensor) -> None:
        use = uses[name] = uses.get(name, -1) + 1
        kernel = kernel_of(rows, known[0], estimator, center=center)
        found[f"{name}[{use}]" if use else name] = kernel

    chosen = _chosen(network, layers)
    rows = known[0].count + 3 if known else (count or 0) + 3
    with ExitStack() as stack:
        for guard in (
            evaluating(network),
            substituted_buffers(network, given),
            substituted_parameters(network, given),
            uncompiled(),
            isolated_random_state(0),
            full_precision(kind.device),
            open_attention(),
            _open_activations(network),
        ):
            stack.enter_context(guard)
        try:
            with _hooks(chosen, rows, keep), OpenGates(rows, embedded):
                run()
        except Exception as error:
            raise ValueError(_culprit(network, rows, run, embedded, known) or _described(error)) from error
    missing = [name for name in chosen if name not in found]
    if not found or (missing and strict and layers is not None):
        named = listed(missing) or "any layer with weights"
        raise ValueError(f"{named} of {type(network).__name__} does not run, or gives no row for every input")
    return OpenGateKernels(tuple(found), torch.stack(list(found.values())), known[0].size, seed)


def open_gate_alignment(a: OpenGateKernels, b: OpenGateKernels) -> tuple[Tensor, Tensor]:
    r"""CKA of every layer of one network with every layer of another, $\langle K_l, L_{l'} \rangle$, and its error.

    The standard error takes the coordinates (or their signed sums) for a sample: of a coordinate's share of the inner
    products, by the delta method. Of networks of eight convolutions, trained or not, with 64 sums of 3,072 coordinates,
    the values of ten seeds were 0.003 to 0.05 off those of all coordinates, and the errors 1.0 to 1.9 times as large.

    Args:
        a: of one network.
        b: of the other, of as many coordinates and with the same seed.

    Returns:
        Values and standard errors, (layers of a, layers of b), in float64; NaN where a kernel is.

    Raises:
        ValueError: for kernels over other coordinates.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import open_gate_alignment, open_gate_kernels
        >>> found = open_gate_kernels(torch.nn.Linear(8, 16), input_shape=(8,))
        >>> print(f"{open_gate_alignment(found, found)[0].item():.3f}")
        1.000
    """
    for name, kernels in (("a", a), ("b", b)):
        if not isinstance(kernels, OpenGateKernels):
            raise ValueError(f"`{name}` must be what open_gate_kernels gives, got {described(kernels)}")
    if (a.size, a.seed, a.kernels.shape[1]) != (b.size, b.seed, b.kernels.shape[1]):
        raise ValueError(
            "kernels must be over the same coordinates, got "
            + " and ".join(f"{k.kernels.shape[1]} sums of {k.size}, seed {k.seed}" for k in (a, b))
        )
    count = a.kernels.shape[1]
    shares = torch.einsum("imn,jmn->ijm", a.kernels, b.kernels.to(a.kernels))
    value = shares.sum(2)
    own = a.kernels.square().sum(2)[:, None] + b.kernels.to(a.kernels).square().sum(2)
    # Every pair of coordinates is in the shares of both.
    influence = 2 * (shares - value[:, :, None] / 2 * own)
    return value, (influence.square().sum(2) * count / (count - 1)).sqrt()


def _call(network: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return network(**batch)
    return network(*batch) if isinstance(batch, tuple | list) else network(batch)


def _chosen(network: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    modules = {name.replace("_orig_mod.", ""): module for name, module in network.named_modules()}
    if layers is None:
        return {name: module for name, module in modules.items() if _has_weights(module)}
    if unknown := [name for name in layers if name not in modules]:
        available = listed(filter(None, modules), 40)
        raise ValueError(f"there is no layer {listed(unknown)} in the network; available: {available}")
    return {name: modules[name] for name in layers}


@contextmanager
def _open_activations(network: nn.Module) -> Iterator[None]:
    """The activations of transformers pass everything; some are formulas of their own."""
    written = [module for module in network.modules() if type(module).__module__ == "transformers.activations"]
    handles = [module.register_forward_hook(lambda module, inputs, output: inputs[0]) for module in written]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_weights(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.ndim > 1
    return (matrix and not isinstance(module, nn.Embedding)) or isinstance(module, nn.MultiheadAttention)


@contextmanager
def _hooks(modules: Mapping[str, nn.Module], rows: int, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """``keep(name, rows)`` of what each module gives."""

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        given = rows_given(output, rows)
        if given is not None:
            keep(name, given)

    handles = [module.register_forward_hook(partial(after, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _culprit(
    network: nn.Module,
    rows: int,
    run: Callable[[], Any],
    embedded: Callable[[Tensor], Tensor] | None,
    known: list[Coordinates],
) -> str | None:
    """Which module cannot be run, or is the first not to be linear, and why; None where all are."""
    names = {module: f"{name or 'the network'} ({type(module).__name__})" for name, module in network.named_modules()}
    running: list[tuple[str, str | None]] = []
    found: list[str] = []

    def problem(given: Any) -> str | None:
        flat = rows_given(given, rows) if known else None
        try:
            return None if flat is None else (kernel_of(flat, known[0], "biased", center=False), None)[1]
        except ValueError as error:
            return str(error)

    def before(module: nn.Module, inputs: Any) -> None:
        running.append((names[module], problem(inputs)))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        name, taken = running.pop()
        reason = taken or problem(output)
        if reason is not None:
            # What it takes was made by a module around that took what is linear.
            makers = [around for around, problem_before in running if problem_before is None]
            found.append(f"{makers[-1] if taken and makers else name} {reason}")

    handles = [hook for m in names for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    try:
        with OpenGates(rows, embedded):
            run()
    except Exception as error:
        found.append(f"{running[-1][0] if running else 'the network'} {error}")
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
