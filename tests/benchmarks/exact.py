"""CKA of all pairs of layers by definition, in float64 and from all features at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.benchmarks.workloads import Workload

__all__ = ["exact_matrix", "features_of"]


def features_of(load: Workload, network: nn.Module) -> list[Tensor]:
    """(N, p) on the CPU for every layer, of the whole probe."""
    found: dict[str, list[Tensor]] = {name: [] for name in load.layers}
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(
            lambda module, inputs, output, name=name: found[name].append(output.flatten(1).float().cpu())
        )
        for name in load.layers
    ]
    try:
        with torch.no_grad():
            for _, (inputs,) in load.probe().batches():
                network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(batches) for batches in found.values()]


def exact_matrix(rows: Sequence[Tensor], columns: Sequence[Tensor], batch_size: int | None = None) -> Tensor:
    """Ratios of HSIC_1 (Song et al. 2012, eq. 5) of linear kernels, (A, B) in float64.

    With `batch_size`, of sums of HSIC_1 over the batches, the minibatch CKA of Nguyen et al. 2021, eq. 3 of its
    section 2; otherwise of all samples at once, which is the unbiased CKA.
    """
    cross, own_rows, own_columns = 0.0, 0.0, 0.0
    size = batch_size or len(rows[0])
    for start in range(0, len(rows[0]), size):
        block = slice(start, start + size)
        first, second = ([_hollow_gram(x[block]) for x in side] for side in (rows, columns))
        cross = cross + torch.stack([torch.stack([_hsic(k, l_) for l_ in second]) for k in first])
        own_rows = own_rows + torch.stack([_hsic(k, k) for k in first])
        own_columns = own_columns + torch.stack([_hsic(k, k) for k in second])
    return cross / (own_rows[:, None] * own_columns[None]).sqrt()


def _hollow_gram(x: Tensor) -> Tensor:
    mean = x.mean(0, dtype=torch.float64)
    gram = torch.zeros(len(x), len(x), dtype=torch.float64)
    for part in range(0, x.shape[1], 8192):  # a wide layer in float64 would not fit
        centered = x[:, part : part + 8192].double() - mean[part : part + 8192]
        gram += centered @ centered.T
    return gram.fill_diagonal_(0)


def _hsic(k: Tensor, l_: Tensor) -> Tensor:
    n = len(k)
    rows_k, rows_l = k.sum(0), l_.sum(0)
    total = (k * l_).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_k @ rows_l
    return total / (n * (n - 3))
