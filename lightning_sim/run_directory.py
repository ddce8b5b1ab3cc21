"""Where a monitored run writes: its directory, the record and the sketches in it, and what is said when that fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sim._arguments import check_text
from lightning_sim.kept_reference import write_reference
from lightning_sim.record import Measurement, SimilarityHistory
from lightning_sim.record.file import RecordWriter
from lightning_sim.record.places import FILE_NAME
from lightning_sim.sketch import SketchSet, save_sketches

__all__ = ["RunDirectory", "checked_directory", "checked_name"]


def checked_name(name: object) -> str:
    """The name of a monitor, if a directory can have it everywhere.

    Raises:
        ValueError: If it would lead elsewhere, or to the record of another monitor.
    """
    name = check_text(name, "name")
    if not name.strip(". ") or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError(
            '`name` must be a plain name, such as "teacher": it is that of a directory, without / \\ : or control '
            f"characters; got {name!r}"
        )
    if name == FILE_NAME:
        raise ValueError(f'`name` must not be that of the record, {FILE_NAME!r}; take "teacher", for instance')
    return name


def checked_directory(directory: object) -> None:
    """Refuse what is neither a path nor None."""
    if directory is not None and (not isinstance(directory, str | Path) or not str(directory)):
        raise ValueError(f"`directory` must be a path or None, got {directory!r}")


class RunDirectory:
    """The directory of one run and one monitor, which nothing else writes to.

    Args:
        wanted: Where it is to be, unless another run is there.
        history: What was measured so far.
        run_id: Of the run that is continued, if any.
        warn: Is told what could not be written.
    """

    def __init__(
        self, wanted: Path, history: SimilarityHistory, run_id: str | None, warn: Callable[[str], None]
    ) -> None:
        self._record = RecordWriter(wanted, history.metadata, history.measurements, run_id)
        self._said = wanted
        self._warn = warn
        if len(history):
            self._writing(RecordWriter.claim)

    @property
    def path(self) -> Path | None:
        """Where the record lies; None before there is anything to write."""
        return None if self._record.path is None else self._record.path.parent

    @property
    def run_id(self) -> str | None:
        """By which the run knows its record again when it is resumed."""
        return self._record.run_id

    def append(self, measurement: Measurement) -> None:
        """Write a measurement to the record; what fails is written with the next one."""
        self._writing(lambda record: record.append(measurement))

    def close(self) -> None:
        """Write what is missing, and let a later run continue the record."""
        self._writing(RecordWriter.close, "and this was the last try; `history` holds all of it")

    def save(self, sketches: SketchSet) -> Path | None:
        """Write ``sketches/epoch=<epoch>-step=<step>.safetensors`` beside the record.

        A file of that name, from before the run was resumed, is renamed to ``epoch=<epoch>-step=<step>-1.safetensors``,
        or the next free number. Returns the path, or None where it could not be written.
        """
        try:
            path = self._record.claim() / "sketches" / f"epoch={sketches.epoch}-step={sketches.step}.safetensors"
            self._say_where()
            if path.exists():
                numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
                path.rename(next(earlier for earlier in numbered if not earlier.exists()))
            save_sketches(sketches, path)
        except (OSError, ValueError) as error:
            self._warn(f"the sketches could not be saved: {error}")
            return None
        return path

    def keep(self, reference: Mapping[str, Any]) -> dict[str, str] | None:
        """Write what was taken of the reference to a file of its own; None where that fails."""
        try:
            return write_reference(reference, self._record.claim())
        except OSError as error:
            self._warn(f"the reference could not be written beside the record, and is in checkpoints: {error}")
            return None

    def _writing(
        self, write: Callable[[RecordWriter], Any], outlook: str = "and is tried again after the next measurement"
    ) -> None:
        try:
            write(self._record)
        except OSError as error:
            self._warn(f"the record could not be written, {outlook}: {error}")
        self._say_where()

    def _say_where(self) -> None:
        if self.path is not None and self.path != self._said:
            rank_zero_info(
                f"SimilarityMonitor: {self._said} belongs to another run, or to another process of this one; "
                f"this run is recorded in {self.path}"
            )
            self._said = self.path
