"""Folders that torch.distributed.checkpoint writes, every rank its shards, read without running code from them."""

from __future__ import annotations

import io
import pickle
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
        if not hasattr(described, "chunks") or (around and str(around[0]).startswith("optim")):
            continue
        inside = found
        for outer in around:
            inside = inside.setdefault(outer, {})
        inside[key] = whole = torch.empty(described.size, dtype=described.properties.dtype)
        lacking = whole.numel()
        for chunk in described.chunks:
            at = places[name, chunk.offsets]
            with (metadata.parent / Path(at.relative_path).name).open("rb") as file:  # and never elsewhere
                file.seek(at.offset)
                part: Tensor = torch.load(io.BytesIO(file.read(at.length)), map_location="cpu", weights_only=True)
            for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                whole = whole.narrow(dim, start, length)
            if part.shape != whole.shape:
                raise ValueError(f"{name} has a part of another shape than its metadata says")
            whole.copy_(part)
            lacking, whole = lacking - part.numel(), inside[key]
        if lacking:
            raise ValueError(f"{name} lacks parts")
    return found


class _Stored:
    """In the place of whatever class torch writes: its values, and nothing that runs."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"dtype": state[0]})  # of TensorProperties


class _Unpickler(pickle.Unpickler):
    """Finds stand-ins, tuples and dtypes, and no function or class of the names in the file."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if (module, name) == ("torch", "Size"):
            return tuple
        if module.startswith(("torch.distributed.checkpoint.", "pathlib")) or name == "_get_layout":
            return _Stored
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
