r"""The canonical record of a run: every measured number, matrices included, in ``similarity/record.jsonl``.

The file holds one JSON object per line, in ASCII, each ended by a newline:

``{"kind": "header", "schema": 1, ...}``
    The first line. ``"run_id"`` is the run's own, ``"monitor"`` the name of its monitor; older records lack both. The
    other keys are the run's metadata (`SimilarityHistory.metadata`).
``{"kind": "matrix", "epoch", "step", "measure", "representation", "rows", "columns", "values"}``
    ``values[i][j]`` compares layer ``rows[i]`` of the network with layer ``columns[j]`` of the reference.
``{"kind": "measurement", "epoch", "step", "matrices", "values"}``
    ``values`` maps ``<measure>/<representation>/<layer>`` or ``<measure>`` to a number; ``matrices`` says how
    many of the lines just above belong to this measurement.

A measurement with its matrices is appended in one write and synchronised to disk; its last line commits it,
so that after a kill the file ends with whole measurements and at most one torn tail, which readers ignore.
Numbers are the shortest decimals that give the same float32; NaN is ``null``. The file can be read while the run goes
on.

A writer writes to no file but its own: see `lightning_sim.loggers.places`. What a run had measured after the checkpoint
from which it is resumed is kept as ``record-1.jsonl`` (or the next free number), which is a record as well.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from lightning_sim._measurement import Measurement, SimilarityMatrix
from lightning_sim.history import SimilarityHistory
from lightning_sim.loggers.appending import AppendedFile
from lightning_sim.loggers.places import FILE_NAME, claim_new, continue_own

__all__ = ["RecordWriter", "read_record"]

SCHEMA = 1
_OF_WRITER = ("kind", "schema", "run_id", "monitor")  # keys of the header that are not metadata
_MATRIX_KEYS = ("measure", "representation", "rows", "columns", "values")
# Lines that start like this are not parsed until a matrix is asked for.
_MATRIX_START = b'{"kind":"matrix",'


class RecordWriter:
    """Appends measurements to ``<directory>/record.jsonl``, or ``<directory>-1/record.jsonl`` where that is taken.

    Nothing is written before the first `append` or `claim`. Should the file be removed while it is written, the next
    `append` writes all of it anew, in a place that is free by then.

    Args:
        directory: Created when needed.
        metadata: The header: whatever JSON can hold, keyed by anything but ``kind``, ``schema``, ``run_id`` and
            ``monitor``.
        measurements: What the run has measured so far.
        run_id: Of the run, if it has a record, which is then continued: it holds exactly `measurements` from then on,
            and what it held beyond them is kept beside it. If it is not in `directory`, or another process is writing
            it, this is another run: its id changes, and it gets a place of its own.

    Raises:
        ValueError: If `metadata` cannot be written as JSON.
    """

    def __init__(
        self,
        directory: Path | str,
        metadata: Mapping[str, Any],
        measurements: Iterable[Measurement] = (),
        run_id: str | None = None,
    ) -> None:
        self.run_id = run_id
        self.wanted = Path(directory)
        self._header = _checked(metadata)
        self._measurements = list(measurements)
        self._written = 0
        self._file: AppendedFile | None = None
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_written": 0, "run_id": None}  # a copy owns no file

    @property
    def path(self) -> Path | None:
        """The record, once there is one."""
        return None if self._file is None else self._file.path

    def claim(self) -> Path:
        """Make the record, with what was measured so far, unless it is there; its directory.

        Raises:
            OSError: If it cannot be written.
        """
        if self._file is None:
            self._write()
        assert self._file is not None
        return self._file.path.parent

    def append(self, measurement: Measurement) -> None:
        """Write one measurement and synchronise the file with the disk.

        Raises:
            OSError: If the file cannot be written, for instance on a full disk. Earlier lines stay intact,
                and the measurement is written together with the next one that succeeds.
        """
        self._measurements.append(measurement)
        self._write()

    def close(self) -> None:
        """Write what could not be written or was removed, and let others go on with the record.

        Raises:
            OSError: If it still cannot be written.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._file is not None or self._measurements:
                self._write()
        finally:
            if self._file is not None:
                self._file.release()

    def _write(self) -> None:
        count = len(self._measurements)
        try:
            if not self._is_appended():
                self._file = self._claimed(b"".join(map(_measurement_lines, self._measurements)))
        except OSError as error:
            where = (self.wanted if self._file is None else self._file.path.parent) / FILE_NAME
            raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(where)) from error
        self._written = count

    def _is_appended(self) -> bool:
        """Whether what is not yet written could be added to the file; False where there is none of our own."""
        if self._file is None:
            return False
        try:
            self._file.append(b"".join(map(_measurement_lines, self._measurements[self._written :])))
        except (FileNotFoundError, NotADirectoryError):
            self.run_id = None  # whatever lies there now is not ours
            return False
        return True

    def _claimed(self, body: bytes) -> AppendedFile:
        if self.run_id is not None:
            file = continue_own(self.wanted, self.run_id, self._first_line(self.run_id), body)
            if file is not None:
                return file
        run_id = uuid.uuid4().hex
        file = claim_new(self.wanted, self._first_line(run_id) + body)
        self.run_id = run_id
        return file

    def _first_line(self, run_id: str) -> bytes:
        own = {"kind": "header", "schema": SCHEMA, "run_id": run_id, "monitor": self.wanted.name}
        return _line({**own, **self._header})


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
    if header.get("kind") != "header":
        raise ValueError(f"{where} is not the header of a similarity record")
    schema = header.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{where} has schema {schema!r}, this lightning-sim reads {SCHEMA}; install a newer one")
    return {key: value for key, value in header.items() if key not in _OF_WRITER}


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


def _checked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in metadata.items():
        if key in _OF_WRITER:
            raise ValueError(f"`metadata` must not have the key {key!r}: the record's header uses it")
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`metadata[{key!r}]` cannot be written as JSON: {error}") from error
    return dict(metadata)


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
