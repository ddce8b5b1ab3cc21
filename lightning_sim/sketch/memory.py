"""Memory for the sums of sketches."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["zeros"]

_PIECE_BYTES = 32 * 2**20
_ALIGNMENT = 64

_lock = threading.Lock()
_piece: NDArray[np.uint8] = np.zeros(0, np.uint8)


def zeros(*shape: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, on the CPU in parts of larger pieces of memory that nothing has touched yet.

    Getting memory from the system page by page takes longer than all that is then added up in it: for 48 layers of
    2 MB `torch.zeros` takes 60 ms and more. NumPy asks for pieces above 4 MB in large pages, where there are such:
    10 ms with the sums. A piece is given back when no tensor uses it any more.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    part = _part(-(-size // _ALIGNMENT) * _ALIGNMENT)[:size]
    return torch.from_numpy(part.view(np.float64 if dtype == torch.float64 else np.float32)).view(shape)


def _part(size: int) -> NDArray[np.uint8]:
    global _piece
    if size > _PIECE_BYTES:
        return np.zeros(size, np.uint8)
    with _lock:
        if size > len(_piece):
            _piece = np.zeros(_PIECE_BYTES, np.uint8)
        part, _piece = _piece[:size], _piece[size:]
    return part
