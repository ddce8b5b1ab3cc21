"""Folders that torch.distributed.checkpoint writes, every rank its shards, read without running code from them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["METADATA", "read_shards"]

METADATA = ".metadata"  # a pickle, of what lies where in the other files


def read_shards(metadata: Path) -> dict[str, Any]:
    """The whole tensors of a folder in mappings as they were saved, but for the optimizers', by its metadata.

    Raises:
        Exception: of many kinds, where the folder is damaged, or its metadata holds more than torch writes.
    """
    with metadata.open("rb") as file:
        stored = _Unpickler(file).load()
    places = {(index.fqn, tuple(vars(index).get("offset") or ())): at for index, at in stored.storage_data.items()}
    found: dict[str, Any] = {}
    for name, described in stored.state_dict_metadata.items():
        *around, key = (stored.planner_data or {}).get(name, (name,))
        if hasattr(described, "chunks") and not (around and str(around[0]).startswith("optim")):
            inside = found
            for outer in around:
                inside = inside.setdefault(outer, {})
            inside[key] = _whole(described, {part: places[name, part.offsets] for part in described.chunks}, metadata)
    return found


def _whole(described: Any, chunks: Mapping[Any, Any], metadata: Path) -> Tensor:
    """A tensor put together from its chunks, which lie in these places."""
    whole = torch.empty(described.size, dtype=described.properties.dtype)
    lacking = whole.numel()
    for chunk, at in chunks.items():
        with (metadata.parent / Path(at.relative_path).name).open("rb") as file:  # and never elsewhere
            file.seek(at.offset)
            values: Tensor = torch.load(io.BytesIO(file.read(at.length)), map_location="cpu", weights_only=True)
        part = whole
        for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            part = part.narrow(dim, start, length)
        if part.shape != values.shape:
            raise ValueError("a chunk has another shape than the metadata says")
        part.copy_(values)
        lacking -= part.numel()
    if lacking:
        raise ValueError("chunks are missing")
    return whole


class _Stored:
    """In the place of whatever class torch writes: its values, and nothing that runs."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"dtype": state[0]})  # of TensorProperties


class _Unpickler(pickle.Unpickler):
    """Finds stand-ins, tuples and dtypes, and no function or class of the names in the file."""

    def find_class(self, module: str, name: str) -> Any:
        found = vars(torch).get(name) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if (module, name) == ("torch", "Size"):
            return tuple
        if module.startswith(("torch.distributed.checkpoint.", "pathlib")) or name == "_get_layout":
            return _Stored
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
