"""Measurements as a tidy table: one row for each number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "Columns", "data_frame", "joined", "tidy_columns"]

COLUMNS = (
    "run",
    "epoch",
    "step",
    "measure",
    "representation",
    "condition",
    "layer",
    "reference_layer",
    "value",
)
Columns = list[list[Any]]


def tidy_columns(
    run: str | None, references: Mapping[str, str], measurements: Iterable[Measurement], *, matrices: bool
) -> Columns:
    """One list per name in `COLUMNS`.

    Args:
        run: name of the run.
        references: layer of the network -> layer of the reference.
        measurements: in the order of the rows.
        matrices: add the cells of the layer x layer matrices, except those that are rows already.
    """
    rows: list[tuple[Any, ...]] = []
    for measurement in measurements:
        moment = (run, measurement.epoch, measurement.step)
        for key, value in measurement.by_key.items():
            reference = None if key.layer is None else references.get(key.layer)
            rows.append((*moment, key.measure, key.representation, key.condition, key.layer, reference, value))
        if measurement.seconds is not None:
            rows.append((*moment, "seconds", None, "", None, None, measurement.seconds))
        for matrix in measurement.matrices if matrices else ():
            kind = (matrix.measure, matrix.representation, matrix.condition)
            for layer, numbers in zip(matrix.rows, matrix.values.tolist(), strict=True):
                key = Key(matrix.measure, matrix.representation, layer, matrix.condition)
                scalar = references.get(layer) if key in measurement.by_key else None
                for reference, value in zip(matrix.columns, numbers, strict=True):
                    if reference != scalar:
                        rows.append((*moment, *kind, layer, reference, value))
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]


def joined(tables: Iterable[tuple[str, Columns]]) -> Columns:
    """Several tables below one another, by the names that they get in the column ``run``."""
    found: Columns = [[] for _ in COLUMNS]
    for run, (runs, *columns) in tables:
        for target, column in zip(found, ([run] * len(runs), *columns), strict=True):
            target.extend(column)
    return found


def data_frame(columns: Columns) -> pandas.DataFrame:
    """The columns as a data frame.

    Raises:
        ModuleNotFoundError: without pandas, naming the extra that has it.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("data frames need pandas: pip install 'lightning-sim[pandas]'") from error
    return pandas.DataFrame(dict(zip(COLUMNS, columns, strict=True)), columns=list(COLUMNS))
