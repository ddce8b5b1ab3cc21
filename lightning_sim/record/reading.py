"""Reading a run back from whatever it left: the record, TensorBoard, a CSV file or an offline W&B run."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from lightning_sim._arguments import described
from lightning_sim.record.file import read_record
from lightning_sim.record.naming import is_epoch, measured_name, run_in
from lightning_sim.record.places import FILE_NAME, holds_measurements, numbered_places
from lightning_sim.record.scalars import RunContent, run_of_scalars
from lightning_sim.record.tensorboard import read_tensorboard
from lightning_sim.record.wandb import read_wandb

__all__ = ["read_csv", "read_run"]

# In order of preference: the record alone holds everything.
_PATTERNS = {
    "record": ("{monitor}/record.jsonl", "record.jsonl", "record-[0-9]*.jsonl"),
    "tensorboard": ("events.out.tfevents*",),
    "csv": ("metrics.csv",),
    "wandb": ("run-*.wandb", "*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb"),
}
_SEVERAL = {"record": "runs", "wandb": "W&B runs"}  # of which none is to be preferred


def read_run(where: Path | str, source: str | None = None, monitor: str = "similarity") -> RunContent:
    """What `lightning_sim.read_history` finds at a path: metadata and measurements."""
    if not isinstance(where, str | PathLike):
        raise ValueError(f"`path` must be the path of a run, got {described(where)}")
    path = Path(where)
    if source is not None and source not in _PATTERNS:
        raise ValueError(f"`source` must be one of {', '.join(_PATTERNS)} or None, got {source!r}")
    for kind in _PATTERNS if source is None else (source,):
        places = _places(path, kind, monitor)
        if len(places) > 1 and kind in _SEVERAL:
            raise ValueError(f"{path} holds several {_SEVERAL[kind]}, give one: {', '.join(map(str, places))}")
        if places:
            return _read(kind, places[0], monitor)
    raise FileNotFoundError(_nothing_found(path, source, monitor))


def read_csv(path: Path, monitor: str) -> RunContent:
    """The scalars in a CSVLogger's ``metrics.csv``; the run is named after its directory."""
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = list(_csv_rows(file, monitor))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return run_of_scalars(rows, {"run": run_in(path.absolute().parent)}, monitor, path)


def _csv_rows(file: Iterable[str], monitor: str) -> Iterator[tuple[int, dict[str, float]]]:
    for row in csv.DictReader(file):
        # A row that was being written when the process died lacks its end.
        if row.get("step") and None not in row and None not in row.values():
            kept = {tag: text for tag, text in row.items() if is_epoch(tag) or measured_name(tag, monitor)}
            yield int(float(row["step"])), {tag: float(text) for tag, text in kept.items() if text}


def _places(path: Path, kind: str, monitor: str) -> list[Path]:
    patterns = [pattern.format(monitor=glob.escape(monitor)) for pattern in _PATTERNS[kind]]
    if path.is_file():
        return [path] if any(path.match(pattern.rpartition("/")[2]) for pattern in patterns) else []
    if kind == "record":
        return _records(path, monitor)
    return [place for pattern in patterns for place in sorted(path.glob(pattern))]


def _records(path: Path, monitor: str) -> list[Path]:
    """The records of the runs in a directory, of several those that hold anything; else the one that lies in it."""
    places = [place / FILE_NAME for place in (path / monitor, *numbered_places(path, monitor))]
    found = [place for place in places if place.is_file()] or [place for place in [path / FILE_NAME] if place.is_file()]
    return [place for place in found if holds_measurements(place)] or found[:1]


def _read(kind: str, place: Path, monitor: str) -> RunContent:
    if kind == "record":
        return read_record(place)
    if kind == "tensorboard":
        return read_tensorboard(place.parent, monitor)
    if kind == "wandb":
        return read_wandb(place, monitor)
    return read_csv(place, monitor)


def _nothing_found(path: Path, source: str | None, monitor: str) -> str:
    if not path.exists():
        return f"{path} does not exist"
    kinds = _PATTERNS if source is None else (source,)
    wanted = ", ".join(_PATTERNS[kind][0].format(monitor=monitor) for kind in kinds)
    message = f"{path} holds no {source or 'run'} to read (looked for {wanted})"
    inside = [place for depth in ("*", "*/*") for place in sorted(path.glob(depth)) if place.is_dir()]
    below = [str(place) for place in inside if any(_places(place, kind, monitor) for kind in kinds)]
    return f"{message}; there are runs below it: {', '.join(below[:8])}" if below else message
