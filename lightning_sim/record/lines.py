r"""The lines of the record ``similarity/record.jsonl``: one JSON object each, in ASCII, ended by a newline.

``{"kind": "header", "schema": 2, "run_id", "monitor", ...}``
    The first line. ``run_id`` is the run's own, ``monitor`` the name of its monitor; older records lack both. The other
    keys are the run's metadata (`SimilarityHistory.metadata`).
``{"kind": "keys", "keys": [[measure, representation, layer, condition], ...]}``
    What the values of the measurements below stand for, until the next such line.
``{"kind": "matrix", "epoch", "step", "measure", "representation", "condition", "rows", "columns", "values"}``
    ``values[i][j]`` compares layer ``rows[i]`` of the network with layer ``columns[j]`` of the reference. Where there
    are any, ``chance_deviations`` are numbers like them, of float16, or the one number that they all are.
``{"kind": "measurement", "epoch", "step", "seconds", "matrices", "values"}``
    ``values`` are numbers in the order of the keys; ``matrices`` says how many of the lines just above belong to this
    measurement. Where there is any, ``statistics`` maps ``standard_error`` and others to numbers in that order too,
    ``null`` where the value has none, and ``notes`` are ``[place, text]`` of single values.

Numbers are the shortest decimals that give the same float32; NaN is ``null``. In the first schema, which is read as
well, ``values`` maps logged names to numbers, and there are no keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix
from lightning_sim.record.naming import derived

__all__ = [
    "SCHEMA",
    "MatrixLine",
    "checked_metadata",
    "header_line",
    "measurement_lines",
    "parse",
    "parse_header",
    "parse_keys",
    "parse_measurement",
]

SCHEMA = 2
_READABLE = (1, SCHEMA)
_OF_WRITER = ("kind", "schema", "run_id", "monitor")  # keys of the header that are not metadata
_MATRIX_KEYS = ("measure", "representation", "rows", "columns", "values", "condition", "chance_deviations")


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what a header is to hold.

    Raises:
        ValueError: for metadata that JSON cannot hold, or with a key that the header uses.
    """
    for key, value in metadata.items():
        if key in _OF_WRITER:
            raise ValueError(f"`metadata` must not have the key {key!r}: the record's header uses it")
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`metadata[{key!r}]` cannot be written as JSON: {error}") from error
    return dict(metadata)


def header_line(run_id: str, monitor: str, metadata: Mapping[str, Any]) -> bytes:
    """The first line."""
    return _line({"kind": "header", "schema": SCHEMA, "run_id": run_id, "monitor": monitor, **metadata})


def measurement_lines(measurement: Measurement, known: Sequence[Key] | None = None) -> bytes:
    """The lines of one measurement, the last of which commits it; its keys among them unless they are `known`."""
    moment = {"epoch": measurement.epoch, "step": measurement.step}
    keys = list(measurement.by_key)
    lines = [] if keys == known else [_line({"kind": "keys", "keys": keys})]
    lines += [
        _line(
            {
                "kind": "matrix",
                **moment,
                "measure": matrix.measure,
                "representation": matrix.representation,
                "condition": matrix.condition,
                "rows": matrix.rows,
                "columns": matrix.columns,
                "values": [_numbers(row) for row in matrix.values],
                **_chance(matrix),
            }
        )
        for matrix in measurement.matrices
    ]
    held: dict[str, Any] = {"matrices": len(measurement.matrices), "values": _numbers(measurement.by_key.values())}
    if measurement.statistics:
        held["statistics"] = {
            name: _numbers(of_keys.get(key, np.nan) for key in keys) for name, of_keys in measurement.statistics.items()
        }
    if measurement.notes:
        held["notes"] = [[keys.index(key), note] for key, note in measurement.notes.items()]
    seconds = None if measurement.seconds is None else _numbers([measurement.seconds])[0]
    lines.append(_line({"kind": "measurement", **moment, "seconds": seconds, **held}))
    return b"".join(lines)


class MatrixLine:
    """A matrix that is still text."""

    def __init__(self, path: Path, number: int, line: bytes) -> None:
        self.where = f"{path}, line {number}"
        self.line = line

    def parse(self) -> SimilarityMatrix:
        """The matrix.

        Raises:
            ValueError: if the line holds none, with its place.
        """
        found = {"condition": "", "chance_deviations": None, **parse(self.line, self.where)}
        try:
            return SimilarityMatrix(**{key: found[key] for key in _MATRIX_KEYS})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.where} is no similarity matrix: {error}") from error


class _LazyMatrices(Sequence[SimilarityMatrix]):
    """The matrices of one measurement, parsed anew whenever asked for."""

    def __init__(self, lines: Sequence[MatrixLine]) -> None:
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


def parse(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        ValueError: if there is none, with the place of the line.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: expected a JSON object, got {type(found).__name__}")
    return found


def parse_header(line: bytes, where: str) -> dict[str, Any]:
    """The metadata in the first line."""
    header = parse(line, where)
    if header.get("kind") != "header":
        raise ValueError(f"{where} is not the header of a similarity record")
    schema = header.get("schema")
    if schema not in _READABLE or isinstance(schema, bool):
        raise ValueError(f"{where} has schema {schema!r}, this lightning-sim reads {SCHEMA}; install a newer one")
    return {key: value for key, value in header.items() if key not in _OF_WRITER}


def parse_keys(found: Mapping[str, Any], where: str) -> list[Key]:
    """The keys in a line of that kind."""
    try:
        keys = [Key(*key) for key in found["keys"]]
        if not all(type(k.measure) is type(k.condition) is str for k in keys) or len(set(keys)) != len(keys):
            raise ValueError("keys must be different lists of text")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    return keys


def parse_measurement(
    found: Mapping[str, Any], waiting: Sequence[MatrixLine], keys: Sequence[Key], where: str
) -> Measurement:
    """A measurement with the last of the matrices that wait above it."""
    try:
        if found["kind"] != "measurement":
            raise ValueError(f"unknown kind {found['kind']!r}")
        count = int(found["matrices"])
        if not 0 <= count <= len(waiting):
            raise ValueError(f"it names {count} matrices, {len(waiting)} stand above it")
        # More than `count` lines wait where a process was killed between the writes of one measurement.
        matrices = _LazyMatrices(waiting[len(waiting) - count :])
        values: dict[Any, Any]
        if isinstance(found["values"], dict):
            values = {name: value for name, value in found["values"].items() if not derived(name)}
        else:
            values = dict(zip(keys, found["values"], strict=True))
            if found["seconds"] is not None:
                values[Key("seconds")] = found["seconds"]
        statistics = {
            name: {key: number for key, number in zip(keys, numbers, strict=True) if number is not None}
            for name, numbers in found.get("statistics", {}).items()
        }
        notes = {keys[place]: note for place, note in found.get("notes", ())}
        return Measurement(found["epoch"], found["step"], values, matrices, statistics, notes)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _line(content: Mapping[str, Any]) -> bytes:
    # ASCII escapes keep line separators in names from ending a line.
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _chance(matrix: SimilarityMatrix) -> dict[str, Any]:
    chance = matrix.distinct_chance_deviations
    if chance is None:
        return {}
    return {"chance_deviations": [_numbers(row, np.float16) for row in chance] if chance.ndim else float(str(chance))}


def _numbers(values: Iterable[Any], dtype: type[np.floating[Any]] = np.float32) -> list[float | None]:
    numbers: NDArray[Any] = np.fromiter(values, dtype=dtype)
    finite = np.isfinite(numbers)
    return [float(str(number)) if ok else None for number, ok in zip(numbers, finite, strict=True)]
