"""The signed folds of features on a CUDA device, in one pass over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["fused_fold"]

_BLOCK = 256
_PROGRAMS = 2048  # several for each multiprocessor of the largest devices, to use all of the memory's bandwidth


def fused_fold(x: Tensor, signs: Tensor, columns: int) -> Tensor:
    """Folds (folds, b, columns) in float32, accumulated in it whatever the precision of `x`.

    Args:
        x: (b, p) on a CUDA device, its rows contiguous.
        signs: (folds, p) of +1 and -1 in int8, for one or two folds: small enough to stay in the cache.
        columns: c; column j of `x` is added to column ``j mod c``.
    """
    (rows, width), folds = x.shape, signs.shape[0]
    slices, blocks = -(-width // columns), -(-columns // _BLOCK)
    # A few rows would keep a few multiprocessors busy; parts of a row are summed apart, and then in a fixed order.
    parts = max(1, min(slices, _PROGRAMS // (rows * blocks)))
    sums = torch.empty(folds, parts, rows, columns, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _fold_kernel[(rows, parts, blocks)](
            x, signs, sums, x.stride(0), width, columns, -(-slices // parts), rows, sums.stride(0), folds == 2, _BLOCK
        )
    return sums[:, 0] if parts == 1 else sums.sum(1)


@triton.jit
def _fold_kernel(
    x,
    signs,
    sums,
    row_stride,
    width,
    columns,
    slices_per_part,
    rows,
    fold_stride,
    two: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = tl.program_id(2) * block + tl.arange(0, block)
    first = tl.zeros([block], dtype=tl.float32)
    second = tl.zeros([block], dtype=tl.float32)
    start = part * slices_per_part
    for index in range(start, start + slices_per_part):
        place = index * columns + column
        inside = (column < columns) & (place < width)
        value = tl.load(x + row * row_stride + place, mask=inside, other=0.0).to(tl.float32)
        first += value * tl.load(signs + place, mask=inside, other=0).to(tl.float32)
        if two:
            second += value * tl.load(signs + width + place, mask=inside, other=0).to(tl.float32)
    target = sums + (part * rows + row) * columns + column
    tl.store(target, first, mask=column < columns)
    if two:
        tl.store(target + fold_stride, second, mask=column < columns)
