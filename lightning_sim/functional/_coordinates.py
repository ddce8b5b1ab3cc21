"""Input coordinates as rows that a network runs on, signed sums of them where they are many, and their kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sim._arguments import described
from lightning_sim._centering import widen

__all__ = ["Coordinates", "kernel_of", "pushed", "rows_given"]

_LINEAR = 1e-4  # what may be left of f(a x + b y) - a f(x) - b f(y), of f: rounding of float32 leaves a hundredth
_ENTRIES = 1 << 18  # of an output that are widened together


class Coordinates:
    """Signed sums of disjoint sets of basis vectors; rows of them, of all ones, of zeros, and of a combination."""

    def __init__(self, size: int, count: int, seed: int, device: torch.device) -> None:
        # Drawn on the CPU, the same for every device, also where another is the default.
        generator = torch.Generator("cpu").manual_seed(seed)
        random: Any = {"generator": generator, "device": "cpu", "dtype": torch.float32}
        self.size, self.count = size, count
        self.buckets, self.signs = torch.arange(size, device="cpu"), torch.ones(size, device="cpu", dtype=torch.float32)
        if count < size:  # in any order: neighbours in an image are alike, and pairs in one set do not count
            self.buckets = torch.randperm(size, **random | {"dtype": torch.int64}) % count
            self.signs = 1.0 - 2.0 * torch.randint(2, (size,), **random)
        ones = self.signs.new_zeros(count).index_add_(0, self.buckets, self.signs)
        trial = torch.randn(count, **random) / math.sqrt(count)
        self.ones, self.trial = widen(ones.to(device)), widen(trial.to(device))

    def rows(self, places: slice = slice(None)) -> Tensor:
        """(M + 3, d), or these columns of it."""
        buckets, signs = self.buckets[places], self.signs[places]
        rows = signs.new_zeros(self.count + 3, len(buckets))
        rows[buckets, torch.arange(len(buckets), device="cpu")] = signs
        rows[-3], rows[-1] = 1, self.trial.to(rows)[buckets] * signs
        return rows


def pushed(
    example: Any, count: int | None, seed: int, kind: Tensor
) -> tuple[Any, Callable[[Tensor], Tensor] | None, list[Coordinates]]:
    """The batch of rows, what gives them for the weight of an embedding, and the coordinates once they are known."""
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    if not tensors or tensors[0].ndim < 2 - tensors[0].is_floating_point() or not len(tensors[0]):
        raise ValueError(f"`example` must hold a batch of inputs, got {described(example)}")
    main, known = tensors[0], []
    embedded: Callable[[Tensor], Tensor] | None = None
    if main.is_floating_point():
        size = main[0].numel()
        known.append(Coordinates(size, min(count or size, size), seed, kind.device))
        rows = known[0].rows().view(-1, *main.shape[1:]).to(kind)
    else:
        if count is None or main.ndim != 2:
            raise ValueError(
                "integers are taken for token ids (samples, positions), and of as many coordinates as there are "
                f"positions and tokens sums are pushed; got shape {tuple(main.shape)} and coordinates={count}"
            )
        rows = main[:1].expand(count + 3, -1)

        def embedded(weight: Tensor) -> Tensor:
            tokens, positions = len(weight), main.shape[1]
            known[:] = [Coordinates(tokens * positions, count, seed, kind.device)]
            places = (slice(start, start + tokens) for start in range(0, tokens * positions, tokens))
            return torch.stack([known[0].rows(place).to(weight) @ weight for place in places], dim=1)

    def first_sample(part: Any) -> Any:
        if part is main:
            return rows
        batched = isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(main)
        return part[:1].expand(len(rows), *part.shape[1:]) if batched else part

    return tree_map(first_sample, example), embedded, known


def rows_given(output: Any, count: int) -> Tensor | None:
    """What a module gives for each of so many inputs, (count, p); some fold further dimensions into the first."""
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    for tensor in tensors:
        if tensor.ndim and tensor.numel() and len(tensor) % count == 0:
            return tensor.reshape(count, -1)
        if count in tensor.shape:
            return tensor.movedim(tensor.shape.index(count), 0).reshape(count, -1)
    return None


def kernel_of(rows: Tensor, known: Coordinates, estimator: str, *, center: bool) -> Tensor:
    """K (M, M) of norm 1 of the rows that the coordinates came to.

    Raises:
        ValueError: when they do not come to what a linear function makes of them.
    """
    count, ones = known.count, known.ones
    kernel = widen(rows[:0]).new_zeros(count, count)
    error, energy = kernel.new_zeros(()), kernel.new_zeros(())
    for part in torch.split(rows, max(1, _ENTRIES // len(rows)), dim=1):
        part = widen(part)
        linear, constant = part[:-3] - part[-2], part[-2]
        error += (part[-1] - constant - known.trial @ linear).square().sum()
        energy += part[:-3].square().sum()
        if center:
            linear -= ones[:, None] * ((part[-3] - constant) / known.size)
        kernel.addmm_(linear, linear.T)
    off = (error * count / energy.clamp_min(torch.finfo(energy.dtype).tiny)).sqrt()
    if not bool(off <= _LINEAR):
        raise ValueError(
            f"is not linear with open gates: f(a x + b y) is off a f(x) + b f(y) by {float(off):.1g} of it"
        )
    if estimator == "unbiased":
        kernel = _projected(kernel, ones)
    norm = kernel.norm()
    # Rounding of the rows leaves so much of a kernel that should be zero.
    return kernel / torch.where(norm > 4 * torch.finfo(rows.dtype).eps * energy, norm, torch.nan)


def _projected(kernel: Tensor, ones: Tensor) -> Tensor:
    """K without its diagonal and away from all b v' + v b', v the sketched ones: inner products are then HSIC_1.

    HSIC_1 of kernels without diagonals is their inner product after that projection (Szekely & Rizzo 2014).
    """
    kernel = kernel.fill_diagonal_(0)
    sums, total = kernel @ ones, ones @ ones
    weights = total - 2 * ones.square()
    weights = torch.where(weights.abs() < 1e-8 * total, 1e-8 * total, weights)
    parts = (sums - ((sums * ones / weights).sum() / (1 + (ones.square() / weights).sum())) * ones) / weights
    return (kernel - torch.outer(parts, ones) - torch.outer(ones, parts)).fill_diagonal_(0)
