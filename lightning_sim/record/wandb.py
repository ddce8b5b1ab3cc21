"""Reading an offline run of Weights & Biases back."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_sim.record.naming import WANDB_STEP, is_epoch, measured_name
from lightning_sim.record.scalars import RunContent, run_of_scalars

__all__ = ["read_wandb"]

_MAGIC = b":W&B\xe1\xbe"
_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_FULL, _FIRST, _LAST = 1, 2, 4  # 3 is a piece between the first and the last


def read_wandb(path: Path, monitor: str) -> RunContent:
    """The scalars and metadata in the run file of an offline run, ``run-<id>.wandb``.

    W&B has no public reader for it. The file is a 7-byte header and a log in LevelDB's format, each of whose
    entries is one protocol buffer of ``wandb.proto.wandb_internal_pb2.Record``. A torn end is ignored.

    Raises:
        ModuleNotFoundError: If wandb is not installed.
        ValueError: If the file is damaged, or holds no similarities.
    """
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
        from wandb.proto import wandb_internal_pb2
    except ModuleNotFoundError as error:
        needed = "reading W&B runs needs wandb: pip install 'lightning-sim[wandb]'"
        raise ModuleNotFoundError(needed) from error
    metadata: dict[str, Any] = {"run": path.stem.removeprefix("run-")}
    rows: list[tuple[int, dict[str, float]]] = []
    try:
        for entry in _log_entries(path):
            record = wandb_internal_pb2.Record.FromString(entry)  # type: ignore[attr-defined, unused-ignore]
            kind = record.WhichOneof("record_type")
            if kind == "run" and record.run.display_name:
                metadata["run"] = record.run.display_name
            elif kind == "config":
                for item in record.config.update:
                    if item.key == monitor and isinstance(found := json.loads(item.value_json), dict):
                        metadata.update(found)
            elif kind == "history":
                scalars = _scalars(record.history.item, monitor)
                step = scalars.pop(WANDB_STEP, None)
                if step is not None:
                    rows.append((int(step), scalars))
    except DecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return run_of_scalars(rows, metadata, monitor, path)


def _scalars(items: Any, monitor: str) -> dict[str, float]:
    found = {}
    for item in items:
        keys = [item.key] if item.key else list(item.nested_key)
        if len(keys) == 1 and (keys[0] == WANDB_STEP or is_epoch(keys[0]) or measured_name(keys[0], monitor)):
            value = json.loads(item.value_json)
            if isinstance(value, (int, float)):
                found[keys[0]] = float(value)
    return found


def _log_entries(path: Path) -> Iterator[bytes]:
    """The entries of a LevelDB log: blocks of 32 KiB, in them pieces (crc32, length, type, data)."""
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        raise ValueError(f"{path} is no W&B run file")
    position, entry = _HEADER_BYTES, b""
    while True:
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < 7:  # too short for a piece's header: filled with zeros
            position += left
            continue
        if position + 7 > len(content):
            return
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        end = position + 7 + length
        if end > len(content):
            return
        if zlib.crc32(content[position + 6 : end]) != checksum:
            if end == len(content) or not any(content[position:]):
                return  # the piece that was being written when the process died
            raise ValueError(f"{path} is damaged at byte {position}: wrong checksum")
        piece = content[position + 7 : end]
        entry = piece if kind in (_FULL, _FIRST) else entry + piece
        if kind in (_FULL, _LAST):
            yield entry
        position = end
