"""Peak of the bytes that tensors hold while something runs, counted and not sampled."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest sum of the storages alive at once that were made inside `run`; operators' own scratch is not seen."""
    with _LiveBytes() as live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        output = func(*args, **kwargs)
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and _address(value) not in before:
                self._count(value.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)


def _address(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata
