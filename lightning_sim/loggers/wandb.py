"""Weights & Biases: summaries, figures, a table at the end, and reading offline runs back."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim.history import COLUMNS, SimilarityHistory
from lightning_sim.loggers.naming import is_epoch, measured_name, shown_as
from lightning_sim.loggers.reading import history_from_scalars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finish", "read_wandb", "set_up", "write_figures"]

STEP = "trainer/global_step"  # under which WandbLogger logs scalars
# W&B takes about 60 microseconds a row and refuses more than 200,000.
MAX_TABLE_ROWS = 50_000

_MAGIC = b":W&B\xe1\xbe"
_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def set_up(logger: Any, names: Sequence[str], metadata: Mapping[str, Any], monitor: str) -> None:
    """Have W&B keep the last, lowest and highest value of every name; put the metadata into the config."""
    prefix = shown_as(logger, monitor)
    for name in names:
        # A name with a glob would compete with the logger's own "*", and the winner changes from run to run;
        # an exact name hides "*", so the step metric is said again. An unescaped dot means a nested key.
        exact = f"{prefix}/{name}".replace(".", "\\.")
        if "*" not in exact:  # W&B takes it for a glob
            logger.experiment.define_metric(exact, step_metric=STEP, step_sync=True, summary="last,min,max")
    logger.experiment.config.update({prefix: dict(metadata)}, allow_val_change=True)


def write_figures(logger: Any, figures: Mapping[str, Figure], step: int) -> None:
    """Log all figures in one row."""
    import wandb

    images = {_harmless(name): wandb.Image(figure) for name, figure in figures.items()}
    logger.experiment.log({**images, STEP: step})


def finish(logger: Any, history: SimilarityHistory, monitor: str) -> None:
    """Log the whole history as one long table, and the epoch of each lowest value as a summary.

    A table of more than 50,000 rows is thinned to evenly spaced measurements, the last one among them.
    """
    import wandb

    if not history.measurements:
        return
    rows = sum(len(measurement.values) for measurement in history.measurements)
    stride = max(1, -(-rows // MAX_TABLE_ROWS))
    kept = SimilarityHistory(history.metadata, history.measurements[::-1][::stride][::-1])
    table = wandb.Table(columns=list(COLUMNS), data=[list(record.values()) for record in kept.to_records()])
    prefix = shown_as(logger, monitor)
    logger.experiment.log({f"{prefix}/table": table, STEP: history.measurements[-1].step})
    lowest = _epochs_of_lowest(history)
    logger.experiment.summary.update({f"{prefix}/{name}.epoch_of_min": epoch for name, epoch in lowest.items()})


def read_wandb(path: Path, monitor: str) -> SimilarityHistory:
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
                step = scalars.pop(STEP, None)
                if step is not None:
                    rows.append((int(step), scalars))
    except DecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return history_from_scalars(rows, metadata, monitor, path)


def _scalars(items: Any, monitor: str) -> dict[str, float]:
    found = {}
    for item in items:
        keys = [item.key] if item.key else list(item.nested_key)
        if len(keys) == 1 and (keys[0] == STEP or is_epoch(keys[0]) or measured_name(keys[0], monitor)):
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


def _epochs_of_lowest(history: SimilarityHistory) -> dict[str, int]:
    lowest: dict[str, tuple[float, int]] = {}
    for measurement in history.measurements:
        for name, value in measurement.values.items():
            if not np.isnan(value) and (name not in lowest or value < lowest[name][0]):
                lowest[name] = (value, measurement.epoch)
    return {name: epoch for name, (_, epoch) in lowest.items()}


def _harmless(name: str) -> str:
    """W&B writes pictures to a path made of their name; it must not climb out of the run's directory."""
    return "/".join(re.sub(r"^\.+$", "_", part) or "_" for part in name.split("/"))
