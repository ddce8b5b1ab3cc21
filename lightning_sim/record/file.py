"""The canonical record of a run: every measured number, matrices included, in ``similarity/record.jsonl``.

A measurement with its matrices is appended in one write and synchronised to disk; its last line commits it,
so that after a kill the file ends with whole measurements and at most one torn tail, which readers ignore.
The file can be read while the run goes on. Its lines are described in :mod:`lightning_sim.record.lines`.

A writer writes to no file but its own: see `lightning_sim.record.places`. What a run had measured after the checkpoint
from which it is resumed is kept as ``record-1.jsonl`` (or the next free number), which is a record as well.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sim.record.appending import AppendedFile
from lightning_sim.record.key import Key
from lightning_sim.record.lines import (
    MatrixLine,
    checked_metadata,
    header_line,
    measurement_lines,
    parse,
    parse_header,
    parse_keys,
    parse_measurement,
)
from lightning_sim.record.measurement import Measurement
from lightning_sim.record.places import FILE_NAME, claim_new, continue_own
from lightning_sim.record.scalars import RunContent

__all__ = ["RecordWriter", "read_record"]

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
        self._header = checked_metadata(metadata)
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
                self._file = self._claimed(_lines(self._measurements))
        except OSError as error:
            where = (self.wanted if self._file is None else self._file.path.parent) / FILE_NAME
            raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(where)) from error
        self._written = count

    def _is_appended(self) -> bool:
        """Whether what is not yet written could be added to the file; False where there is none of our own."""
        if self._file is None:
            return False
        try:
            self._file.append(_lines(self._measurements, self._written))
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
        return header_line(run_id, self.wanted.name, self._header)


def read_record(path: Path | str) -> RunContent:
    """Metadata and measurements in a record file; a torn tail, as a killed process leaves it, is ignored.

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
    waiting: list[MatrixLine] = []
    keys: list[Key] = []
    for number, line in _whole_lines(path):
        where = f"{path}, line {number}"
        if metadata is None:
            metadata = parse_header(line, where)
            continue
        # A matrix written by another program, with other spacing, is parsed twice.
        found = {"kind": "matrix"} if line.startswith(_MATRIX_START) else parse(line, where)
        if found.get("kind") == "matrix":
            waiting.append(MatrixLine(path, number, line))
        elif found.get("kind") == "keys":
            keys = parse_keys(found, where)
        else:
            measurements.append(parse_measurement(found, waiting, keys, where))
            waiting = []
    if metadata is None:
        raise ValueError(f"{path} holds no header: it is no similarity record, or nothing was measured yet")
    return metadata, measurements


def _lines(measurements: Sequence[Measurement], start: int = 0) -> bytes:
    """Of the measurements from `start` on, with their keys wherever these are not those of the one before."""
    known: list[Key] | None = list(measurements[start - 1].by_key) if start else None
    found = []
    for measurement in measurements[start:]:
        found.append(measurement_lines(measurement, known))
        known = list(measurement.by_key)
    return b"".join(found)


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
