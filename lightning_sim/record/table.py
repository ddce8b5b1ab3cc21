"""Measurements as a tidy table: one row for each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement
from lightning_sim.record.statistics import STATISTICS

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "KEY_COLUMNS", "Columns", "data_frame", "joined", "of_measure", "tidy_columns", "wide_frame"]

KEY_COLUMNS = ("measure", "representation", "condition", "layer")
COLUMNS = ("run", "epoch", "step", *KEY_COLUMNS, "reference_layer", "value", *STATISTICS)
Columns = list[list[Any]]
_NOTHING = [None] * len(STATISTICS)


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
            beside = [measurement.statistic(name, key) for name in STATISTICS]
            rows.append(
                (*moment, key.measure, key.representation, key.condition, key.layer, reference, value, *beside)
            )
        if measurement.seconds is not None:
            rows.append((*moment, "seconds", None, "", None, None, measurement.seconds, *_NOTHING))
        for matrix in measurement.matrices if matrices else ():
            kind = (matrix.measure, matrix.representation, matrix.condition)
            for layer, numbers in zip(matrix.rows, matrix.values.tolist(), strict=True):
                key = Key(matrix.measure, matrix.representation, layer, matrix.condition)
                scalar = references.get(layer) if key in measurement.by_key else None
                for reference, value in zip(matrix.columns, numbers, strict=True):
                    if reference != scalar:
                        rows.append((*moment, *kind, layer, reference, value, *_NOTHING))
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]


def joined(tables: Iterable[tuple[str, Columns]]) -> Columns:
    """Several tables below one another, by their names for the column ``run``, of which equal ones are numbered."""
    found: Columns = [[] for _ in COLUMNS]
    times = Counter[str]()
    for run, (runs, *columns) in tables:
        times[run] += 1
        name = run if times[run] == 1 else f"{run} ({times[run]})"
        for target, column in zip(found, ([name] * len(runs), *columns), strict=True):
            target.extend(column)
    return found


def of_measure(columns: Columns, measure: str) -> Columns:
    """The rows of one measure; refused with the measures that there are."""
    measures = columns[COLUMNS.index("measure")]
    if measure not in measures:
        held = ", ".join(dict.fromkeys(measures)) or "nothing yet"
        raise ValueError(f"no measure {measure!r} in this history; it holds {held}")
    return [[value for value, of in zip(column, measures, strict=True) if of == measure] for column in columns]


def data_frame(columns: Columns) -> pandas.DataFrame:
    """The columns as a data frame.

    Raises:
        ModuleNotFoundError: without pandas, naming the extra that has it.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("data frames need pandas: pip install 'lightning-sim[pandas]'") from error
    frame = pandas.DataFrame(dict(zip(COLUMNS, columns, strict=True)), columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(STATISTICS, float))


def wide_frame(columns: Columns) -> pandas.DataFrame:
    """A row for each measurement of a run and a column for each number, see `SimilarityHistory.to_pandas`."""
    held = dict(zip(COLUMNS, columns, strict=True))
    keys = [Key(*parts) for parts in zip(*(held[part] for part in Key._fields), strict=True)]
    alike = len({key._replace(layer=None) for key in keys}) == 1
    compared = Counter(key for key, _ in set(zip(keys, held["reference_layer"], strict=True)))
    names = [
        (key.layer if alike and key.layer else key.name) + (f" against {reference}" if compared[key] > 1 else "")
        for key, reference in zip(keys, held["reference_layer"], strict=True)
    ]
    numbers = data_frame(columns).assign(name=names).drop_duplicates(["epoch", "step", "name"], keep="last")
    wide = numbers.pivot(index=["epoch", "step"], columns="name", values="value")
    return wide[list(dict.fromkeys(names))].rename_axis(columns=None)
