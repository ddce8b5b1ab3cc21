r"""The canonical record of a run: every measured number, matrices included, in ``similarity/record.jsonl``.

The file holds one JSON object per line, in ASCII, each ended by a newline:

``{"kind": "header", "schema": 1, ...}``
    The first line. The other keys are the run's metadata (`SimilarityHistory.metadata`).
``{"kind": "matrix", "epoch", "step", "measure", "representation", "rows", "columns", "values"}``
    ``values[i][j]`` compares layer ``rows[i]`` of the network with layer ``columns[j]`` of the reference.
``{"kind": "measurement", "epoch", "step", "matrices", "values"}``
    ``values`` maps ``<measure>/<representation>/<layer>`` or ``<measure>`` to a number; ``matrices`` says how
    many of the lines just above belong to this measurement.

A measurement with its matrices is appended in one write and synchronised to disk; its last line commits it,
so that after a kill the file ends with whole measurements and at most one torn tail, which readers ignore.
Numbers are the shortest decimals that give the same float32; NaN and infinite values are ``null`` and read as
NaN. The file can be read while the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from lightning_sim._measurement import Measurement, SimilarityMatrix
from lightning_sim.history import SimilarityHistory
from lightning_sim.loggers.appending import AppendedFile

__all__ = ["FILE_NAME", "RecordWriter", "read_record"]

FILE_NAME = "record.jsonl"
SCHEMA = 1
_MATRIX_KEYS = ("measure", "representation", "rows", "columns", "values")
# Lines that start like this are not parsed until a matrix is asked for.
_MATRIX_START = b'{"kind":"matrix",'


class RecordWriter:
    """Appends measurements to ``<directory>/record.jsonl``.

    Nothing is written before the first `append` or `restart`. The record that an earlier run left in the
    directory is renamed to ``record-1.jsonl`` (or the next free number), unless `restart` takes it over.

    Args:
        directory: Created when needed.
        metadata: The header: whatever JSON can hold, keyed by anything but ``kind`` and ``schema``.

    Raises:
        ValueError: If `metadata` cannot be written as JSON.
    """

    def __init__(self, directory: Path | str, metadata: Mapping[str, Any]) -> None:
        self.path = Path(directory) / FILE_NAME
        self._file = AppendedFile(self.path, _header_line(metadata))

    def append(self, measurement: Measurement) -> None:
        """Write one measurement and synchronise the file with the disk.

        Raises:
            OSError: If the file cannot be written, for instance on a full disk. Earlier lines stay intact,
                and the measurement is written together with the next one that succeeds.
        """
        self._file.append(_measurement_lines(measurement))

    def restart(self, history: SimilarityHistory) -> None:
        """Atomically replace the file by one with exactly the measurements of `history`, and go on there.

        The header is that of this writer, not that of `history`.

        Raises:
            OSError: If the file cannot be written; the former file is then still in place.
        """
        self._file.replace(b"".join(map(_measurement_lines, history.measurements)))

    def close(self) -> None:
        """Try once more to write what a full disk had kept out.

        Raises:
            OSError: If it still cannot be written.
        """
        self._file.close()


def read_record(path: Path | str) -> SimilarityHistory:
    """The history in a record file; a torn tail, as a killed process leaves it, is ignored.

    Matrices are parsed when they are asked for: reading costs the parsing of the scalars alone.

    Args:
        path: The file, or the directory that holds ``record.jsonl``.

    Raises:
        ValueError: If the file is no record, is damaged elsewhere than at its end (the message names file and
            line), or was written by a newer version with another schema.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    metadata: dict[str, Any] | None = None
    measurements: list[Measurement] = []
    waiting: list[_MatrixLine] = []
    for number, line in _whole_lines(path):
        if metadata is None:
            metadata = _parse_header(line, f"{path}, line {number}")
        elif line.startswith(_MATRIX_START):
            waiting.append(_MatrixLine(path, number, line))
        else:
            found = _parse(line, f"{path}, line {number}")
            if found.get("kind") == "matrix":  # written by another program, with other spacing
                waiting.append(_MatrixLine(path, number, line))
            else:
                measurements.append(_parse_measurement(found, waiting, f"{path}, line {number}"))
                waiting = []
    if metadata is None:
        raise ValueError(f"{path} holds no header: it is no similarity record, or nothing was measured yet")
    return SimilarityHistory(metadata, measurements)


class _MatrixLine:
    """A matrix that is still text."""

    def __init__(self, path: Path, number: int, line: bytes) -> None:
        self.where = f"{path}, line {number}"
        self.line = line

    def parse(self) -> SimilarityMatrix:
        found = _parse(self.line, self.where)
        try:
            return SimilarityMatrix(**{key: found[key] for key in _MATRIX_KEYS})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.where} is no similarity matrix: {error}") from error


class _LazyMatrices(Sequence[SimilarityMatrix]):
    """The matrices of one measurement, parsed anew whenever asked for."""

    def __init__(self, lines: Sequence[_MatrixLine]) -> None:
        self._lines = tuple(lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> SimilarityMatrix: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SimilarityMatrix]: ...
    def __getitem__(self, index: int | slice) -> SimilarityMatrix | Sequence[SimilarityMatrix]:
        if isinstance(index, slice):
            return _LazyMatrices(self._lines[index])
        return self._lines[index].parse()


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; the last one only if it is whole: a JSON object cut short never parses."""
    with path.open("rb", buffering=1 << 20) as file:  # lines of matrices are long
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                try:
                    json.loads(line)
                except (ValueError, RecursionError):
                    return
            if not line.isspace():
                yield number, line


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: expected a JSON object, got {type(found).__name__}")
    return found


def _parse_header(line: bytes, where: str) -> dict[str, Any]:
    header = _parse(line, where)
    if header.pop("kind", None) != "header":
        raise ValueError(f"{where} is not the header of a similarity record")
    schema = header.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"{where} has schema {schema!r}, this lightning-sim reads {SCHEMA}; install a newer one")
    return header


def _parse_measurement(found: Mapping[str, Any], waiting: Sequence[_MatrixLine], where: str) -> Measurement:
    try:
        if found["kind"] != "measurement":
            raise ValueError(f"unknown kind {found['kind']!r}")
        count = int(found["matrices"])
        if not 0 <= count <= len(waiting):
            raise ValueError(f"it names {count} matrices, {len(waiting)} stand above it")
        # More than `count` lines wait where a process was killed between the writes of one measurement.
        matrices = _LazyMatrices(waiting[len(waiting) - count :])
        return Measurement(found["epoch"], found["step"], found["values"], matrices)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _header_line(metadata: Mapping[str, Any]) -> bytes:
    for key, value in metadata.items():
        if key in ("kind", "schema"):
            raise ValueError(f"`metadata` must not have the key {key!r}: the record's header uses it")
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`metadata[{key!r}]` cannot be written as JSON: {error}") from error
    return _line({"kind": "header", "schema": SCHEMA, **metadata})


def _measurement_lines(measurement: Measurement) -> bytes:
    moment = {"epoch": measurement.epoch, "step": measurement.step}
    lines = [
        _line(
            {
                "kind": "matrix",
                **moment,
                "measure": matrix.measure,
                "representation": matrix.representation,
                "rows": matrix.rows,
                "columns": matrix.columns,
                "values": [_numbers(row) for row in matrix.values],
            }
        )
        for matrix in measurement.matrices
    ]
    values = dict(zip(measurement.values, _numbers(measurement.values.values()), strict=True))
    lines.append(_line({"kind": "measurement", **moment, "matrices": len(lines), "values": values}))
    return b"".join(lines)


def _line(content: Mapping[str, Any]) -> bytes:
    # ASCII escapes keep line separators in names from ending a line.
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _numbers(values: Iterable[Any]) -> list[float | None]:
    numbers = np.fromiter(values, dtype=np.float32)
    finite = np.isfinite(numbers)
    return [float(str(number)) if ok else None for number, ok in zip(numbers, finite, strict=True)]
