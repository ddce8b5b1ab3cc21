"""The queryable record of a monitored run: trajectories, matrices and tidy tables, in memory or read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim._arguments import check_integer, check_number, check_text, described
from lightning_sim._checks import check_choice
from lightning_sim._measurement import Measurement, SimilarityMatrix, split_name
from lightning_sim.correlations import Method, correlate, is_correlation
from lightning_sim.functional.correlation import CorrelationResult

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "SimilarityHistory", "Trajectory", "read_history"]

COLUMNS = ("run", "epoch", "step", "measure", "representation", "layer", "reference_layer", "value")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One number over the course of training.

    Args:
        name: As it was logged, without ``similarity/``: ``"cka/features/layer3"`` or ``"jsd"``.
        epochs: Shape (measurements,), integers.
        steps: Shape (measurements,), integers, the loggers' steps.
        values: Shape (measurements,); NaN where a measurement failed.
    """

    name: str
    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        ends = f", {self.values[0]:.4g} to {self.values[-1]:.4g}" if len(self) else ""
        return f"Trajectory({self.name!r}, {len(self)} measurements{ends})"

    def plot(self) -> Figure:
        """Value against epoch; needs the extra ``plot``."""
        from lightning_sim.figures import trajectory_figure

        return trajectory_figure(self)


class SimilarityHistory:
    """All measurements of one run, with what is needed to understand them.

    Args:
        metadata: JSON-like description of the run. Two keys have a meaning here: ``"run"``, its name, and
            ``"layers"``, which maps the network's layers to those of the reference, in the network's order.
        measurements: In the order in which they were made.

    Example:
        >>> from lightning_sim._measurement import Measurement
        >>> history = SimilarityHistory({"run": "fine-tuning", "layers": {"conv": "conv"}})
        >>> history.append(Measurement(epoch=0, step=9, values={"cka/features/conv": 1.0, "jsd": 0.0}))
        >>> history.append(Measurement(epoch=1, step=19, values={"cka/features/conv": 0.875, "jsd": 0.25}))
        >>> history.trajectory("cka", layer="conv").values
        array([1.   , 0.875])
        >>> history.to_records()[-1]["value"]
        0.25
    """

    def __init__(self, metadata: Mapping[str, Any], measurements: Iterable[Measurement] = ()) -> None:
        if not isinstance(metadata, Mapping):
            raise ValueError(f"`metadata` must be a mapping, {{}} where nothing is known, got {described(metadata)}")
        self.metadata: dict[str, Any] = dict(metadata)
        if not isinstance(measurements, Iterable):
            raise ValueError(f"`measurements` must be a list of them, got {described(measurements)}")
        self.measurements: list[Measurement] = []
        for measurement in measurements:
            self.append(measurement)

    def append(self, measurement: Measurement) -> None:
        """Add the newest measurement."""
        if not isinstance(measurement, Measurement):
            raise ValueError(f"a history holds objects of the class Measurement, got {described(measurement)}")
        self.measurements.append(measurement)

    @property
    def run(self) -> str | None:
        """The run's name, from the metadata."""
        run = self.metadata.get("run")
        return None if run is None else str(run)

    @property
    def names(self) -> list[str]:
        """Every name that was ever measured, without ``similarity/``, in order of appearance.

        The live correlations are left out: they follow from the others, and are many.
        """
        found = dict.fromkeys(name for measurement in self.measurements for name in measurement.values)
        return [name for name in found if not is_correlation(name)]

    @property
    def measures(self) -> list[str]:
        """The measures in order of appearance; ``"seconds"``, what the measuring took, is none."""
        return list(dict.fromkeys(split_name(name)[0] for name in self.names if name != "seconds"))

    @property
    def layers(self) -> list[str]:
        """The measured layers: in the network's order as far as the metadata knows it, then by appearance."""
        found = dict.fromkeys(layer for name in self.names if (layer := split_name(name)[2]) is not None)
        known = [layer for layer in self._reference_layers() if layer in found]
        return list(dict.fromkeys([*known, *found]))

    @property
    def epochs(self) -> list[int]:
        """The epochs that were measured, without repetition."""
        return list(dict.fromkeys(measurement.epoch for measurement in self.measurements))

    def trajectory(self, measure: str, *, layer: str | None = None, representation: str = "features") -> Trajectory:
        """One measure of one layer, or of the outputs, over the course of training.

        Args:
            measure: For instance ``"cka"``, or ``"jsd"``, which belongs to the outputs and takes no layer.
            layer: Name of a layer of the network.
            representation: For measures of layers; ``"weights"`` for wCKA.

        Raises:
            ValueError: If nothing of that name was measured; the message says what was.
        """
        _check_asked(measure, layer, representation)
        name = measure if layer is None else f"{measure}/{representation}/{layer}"
        found = [m for m in self.measurements if name in m.values]
        if not found:
            raise ValueError(self._unknown(measure, layer, representation))
        return Trajectory(
            name,
            np.array([m.epoch for m in found], dtype=np.int64),
            np.array([m.step for m in found], dtype=np.int64),
            np.array([m.values[name] for m in found], dtype=np.float64),
        )

    def matrix(
        self, measure: str = "cka", *, representation: str = "features", epoch: int | None = None
    ) -> SimilarityMatrix:
        """The layer x layer matrix of one measure: the last one, or the last one of an epoch.

        Raises:
            ValueError: If there is none; the message says which there are.
        """
        _check_asked(measure, None, representation, epoch)
        for measurement in reversed(self.measurements):
            if epoch is None or measurement.epoch == epoch:
                for matrix in measurement.matrices:
                    if (matrix.measure, matrix.representation) == (measure, representation):
                        return matrix
        asked = f"{measure}/{representation}" + ("" if epoch is None else f" at epoch {epoch}")
        epochs: dict[str, list[int]] = {}
        for measurement in self.measurements:
            for matrix in measurement.matrices:
                epochs.setdefault(f"{matrix.measure}/{matrix.representation}", []).append(measurement.epoch)
        held = "; ".join(f"{name} at epochs {_shortened([*dict.fromkeys(e)])}" for name, e in epochs.items())
        raise ValueError(f"no matrix {asked} in this history; it holds {held or 'no matrices'}")

    def correlation(
        self,
        first: str = "cka",
        second: str = "jsd",
        *,
        layer: str | None = None,
        representation: str = "features",
        epoch: int | None = None,
        method: Method = "pearson",
        confidence: float = 0.95,
    ) -> CorrelationResult:
        """How two measures move together: over the measurements, or over the layers within one of them.

        With `layer`, and between two measures of outputs, it is over the measurements, as in "does CKA of this
        layer fall when the outputs diverge?". Between two measures of layers without `layer`, it is over the
        layers of one measurement, as in "do CKA and NBS order the layers alike?".

        Measurements of one run are not independent: over them the interval is too narrow and the p-value too small.

        Args:
            first: A measure, of layers or of outputs; the x of the slope.
            second: The other one; a trajectory of outputs belongs to every layer.
            layer: Name of a layer of the network.
            representation: For measures of layers.
            epoch: Over layers: the last measurement of this epoch; the very last one by default.
            method: ``"pearson"`` or ``"spearman"``.
            confidence: Coverage of the interval.

        Returns:
            ``CorrelationResult(value, low, high, p_value, slope)``; all NaN for fewer than four pairs of finite
            numbers, and where one measure does not move beyond the rounding of float32.

        Raises:
            ValueError: If nothing of these names was measured; the message says what was.
        """
        check_choice(method, "method", ("pearson", "spearman"))
        if not 0 < check_number(confidence, "confidence") < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {confidence}")
        for measure in (first, second):
            _check_asked(measure, layer, representation, epoch)
        layered = [not any(measure in m.values for m in self.measurements) for measure in (first, second)]
        if all(layered) and layer is None:
            x, y = self._over_layers(first, second, representation, epoch)
        elif epoch is not None:
            raise ValueError(f"`epoch` is for correlations over layers, without `layer`; got epoch {epoch}")
        else:
            names = [
                self.trajectory(measure, layer=layer if of_layers else None, representation=representation).name
                for measure, of_layers in zip((first, second), layered, strict=True)
            ]
            x, y = (np.array([m.values.get(name, np.nan) for m in self.measurements]) for name in names)
        return correlate(x, y, method, confidence)

    def to_records(self, *, matrices: bool = False) -> list[dict[str, Any]]:
        """One dictionary per number, with the keys `COLUMNS`.

        Representation, layer and reference_layer are None for measures of outputs and of whole networks;
        reference_layer is None as well where the source does not say which it was. ``seconds`` is a row too.

        Args:
            matrices: Add the cells of the layer x layer matrices, except those that are rows already.
        """
        columns = self._columns(matrices)
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_pandas(self, *, matrices: bool = False) -> pandas.DataFrame:
        """The rows of `to_records` as a data frame; needs the extra ``pandas``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        return _frame(self._columns(matrices))

    def plot(self) -> Figure:
        """Trajectories of every measure and the last matrix, as a figure; needs the extra ``plot``."""
        from lightning_sim.figures import history_figure

        return history_figure(self)

    @staticmethod
    def compare(histories: Sequence[SimilarityHistory | str | Path], *, matrices: bool = False) -> pandas.DataFrame:
        """The tables of several runs below one another, told apart by ``run``; needs the extra ``pandas``.

        Runs of the same name become ``name``, ``name (2)``, ...; those without a name are called ``run``.

        Args:
            histories: Histories, or paths for `read_history`.
            matrices: As in `to_records`.
        """
        if isinstance(histories, str | Path | SimilarityHistory) or not isinstance(histories, Iterable):
            raise ValueError(f"`histories` must be a list of histories or paths, got {described(histories)}")
        joined: list[list[Any]] = [[] for _ in COLUMNS]
        taken: set[str] = set()
        for item in histories:
            history = item if isinstance(item, SimilarityHistory) else read_history(item)
            run = _free_name(history.run or "run", taken)
            columns = history._columns(matrices)
            columns[0] = [run] * len(columns[0])
            for target, column in zip(joined, columns, strict=True):
                target.extend(column)
        return _frame(joined)

    def to_state(self) -> dict[str, Any]:
        """The history as primitives and tensors, which checkpoints load without running code."""
        return {
            "metadata": json.loads(json.dumps(self.metadata)),  # only what weights_only loading accepts
            "measurements": [measurement.to_state() for measurement in self.measurements],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SimilarityHistory:
        """The inverse of `to_state`."""
        return cls(state["metadata"], map(Measurement.from_state, state["measurements"]))

    def __len__(self) -> int:
        return len(self.measurements)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SimilarityHistory):
            return NotImplemented
        return self.metadata == other.metadata and self.measurements == other.measurements

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        run = "" if self.run is None else f"run {self.run!r}, "
        if not self.measurements:
            return f"SimilarityHistory({run}nothing measured yet)"
        return (
            f"SimilarityHistory({run}{len(self)} measurements, epochs {_shortened(self.epochs)}, "
            f"{', '.join(self.measures)}, {len(self.layers)} layers)"
        )

    def _reference_layers(self) -> Mapping[str, str]:
        layers = self.metadata.get("layers")
        return layers if isinstance(layers, Mapping) else {}

    def _over_layers(
        self, first: str, second: str, representation: str, epoch: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two measures of every layer that has both, at one measurement."""
        found = [m for m in self.measurements if epoch is None or m.epoch == epoch]
        if not found:
            at = "" if epoch is None else f" at epoch {epoch}"
            raise ValueError(f"nothing was measured{at}; epochs are {_shortened(self.epochs) or 'none'}")
        values = found[-1].values
        names = [[f"{measure}/{representation}/{layer}" for layer in self.layers] for measure in (first, second)]
        for measure, wanted in zip((first, second), names, strict=True):
            if values.keys().isdisjoint(wanted):
                held = ", ".join(self.measures) or "nothing yet"
                raise ValueError(f"no layer has {measure}/{representation} in this measurement; measured was {held}")
        pairs = [(values[x], values[y]) for x, y in zip(*names, strict=True) if x in values and y in values]
        x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return x, y

    def _columns(self, matrices: bool) -> list[list[Any]]:
        """One list per name in `COLUMNS`."""
        rows: list[tuple[Any, ...]] = []
        run, references = self.run, self._reference_layers()
        for measurement in self.measurements:
            moment = (run, measurement.epoch, measurement.step)
            for name, value in measurement.values.items():
                measure, representation, layer = split_name(name)
                reference = None if layer is None else references.get(layer)
                rows.append((*moment, measure, representation, layer, reference, value))
            for matrix in measurement.matrices if matrices else ():
                kind = (matrix.measure, matrix.representation)
                for layer, numbers in zip(matrix.rows, matrix.values.tolist(), strict=True):
                    scalar = references.get(layer) if "/".join((*kind, layer)) in measurement.values else None
                    for reference, value in zip(matrix.columns, numbers, strict=True):
                        if reference != scalar:
                            rows.append((*moment, *kind, layer, reference, value))
        return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]

    def _unknown(self, measure: str, layer: str | None, representation: str) -> str:
        found = [split_name(name)[1:] for name in self.names if split_name(name)[0] == measure]
        if not found:
            held = ", ".join(self.measures) or "nothing yet"
            return f"no measure {measure!r} in this history; it holds {held}"
        if found == [(None, None)]:
            return f"{measure!r} belongs to outputs or whole networks: leave `layer` out, got {layer!r}"
        representations = [kind for kind in dict.fromkeys(kind for kind, _ in found) if kind is not None]
        if representation not in representations:
            return f"{measure!r} was measured for {', '.join(representations)}, not for {representation!r}"
        asked = "give `layer`" if layer is None else f"no layer {layer!r}"
        layers = (name for name in self.layers if (representation, name) in found)
        return f"{asked}: {measure}/{representation} was measured for {', '.join(layers)}"


def read_history(path: Path | str, *, source: str | None = None, name: str = "similarity") -> SimilarityHistory:
    """Read a run back, from the first of these that it holds: record, TensorBoard, CSV, offline W&B.

    Only the record holds matrices; the others hold the scalars. TensorBoard and W&B hold the metadata as
    well, a CSV file does not: there the reference layers are unknown.

    Args:
        path: A run's directory, its ``similarity`` directory (`SimilarityMonitor.directory`), or one of the files:
            ``record.jsonl``, an event file, ``metrics.csv``, ``run-*.wandb``.
        source: ``"record"``, ``"tensorboard"``, ``"csv"`` or ``"wandb"`` to insist on one of them.
        name: The monitor's `name`. A logger with a prefix of its own calls it ``<prefix>-similarity``.

    Raises:
        FileNotFoundError: If nothing readable lies there; directories below that hold runs are named.
        ValueError: If a file is damaged, or several records or offline W&B runs lie there; it names them.
        ModuleNotFoundError: If the package that reads the source is not installed.
    """
    from lightning_sim.loggers.reading import read_run

    if not isinstance(path, str | PathLike):
        raise ValueError(f"`path` must be the path of a run, got {described(path)}")
    return read_run(Path(path), source, check_text(name, "name"))


def _check_asked(measure: object, layer: object, representation: object, epoch: object = None) -> None:
    """Refuse what is no name of anything, before it is looked up."""
    check_text(measure, "measure")
    check_text(representation, "representation")
    if layer is not None:
        check_text(layer, "layer")
    if epoch is not None:
        check_integer(epoch, "epoch", least=-1)  # what loggers do not say is -1


def _frame(columns: list[list[Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("data frames need pandas: pip install 'lightning-sim[pandas]'") from error
    return pandas.DataFrame(dict(zip(COLUMNS, columns, strict=True)), columns=list(COLUMNS))


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free)
    return free


def _shortened(numbers: Sequence[int]) -> str:
    if len(numbers) > 8:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers))
