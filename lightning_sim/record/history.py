"""The queryable record of a monitored run: trajectories, matrices and tidy tables, in memory or read back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim._arguments import check_number, check_text, described
from lightning_sim._checks import check_choice
from lightning_sim.figures import Panel, draw_heatmap, panel_grid
from lightning_sim.functional.correlation import CorrelationResult
from lightning_sim.record.asking import check_asked, unknown
from lightning_sim.record.correlations import CORRELATION, CORRELATION_SCALE, Method, correlate
from lightning_sim.record.file import RecordWriter
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix
from lightning_sim.record.reading import read_run
from lightning_sim.record.scale import Scale
from lightning_sim.record.table import COLUMNS, data_frame, tidy_columns
from lightning_sim.record.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["SimilarityHistory", "read_history"]


class SimilarityHistory:
    """All measurements of one run, with what is needed to understand them.

    Args:
        metadata: JSON-like description of the run. Three keys have a meaning here: ``"run"``, its name; ``"layers"``,
            which maps the network's layers to those of the reference, in the network's order; and ``"scales"``, which
            says how to read each measure (:class:`lightning_sim.measures.Scale`).
        measurements: in the order in which they were made.

    Example:
        >>> from lightning_sim.record import Measurement
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
    def keys(self) -> list[Key]:
        """What was ever measured, in order of appearance."""
        return list(dict.fromkeys(key for measurement in self.measurements for key in measurement.by_key))

    @property
    def names(self) -> list[str]:
        """The same as logged names, without ``similarity/``."""
        return [key.name for key in self.keys]

    @property
    def measures(self) -> list[str]:
        """The measures in order of appearance."""
        return list(dict.fromkeys(key.measure for key in self.keys))

    @property
    def layers(self) -> list[str]:
        """The measured layers: in the network's order as far as the metadata knows it, then by appearance."""
        found = dict.fromkeys(key.layer for key in self.keys if key.layer is not None)
        known = [layer for layer in self._reference_layers() if layer in found]
        return list(dict.fromkeys([*known, *found]))

    @property
    def epochs(self) -> list[int]:
        """The epochs that were measured, without repetition."""
        return list(dict.fromkeys(measurement.epoch for measurement in self.measurements))

    def scale(self, measure: str) -> Scale:
        """How the values of a measure are to be read; an unknown range where the source does not say."""
        scales = self.metadata.get("scales")
        state = scales.get(measure) if isinstance(scales, Mapping) else None
        if not isinstance(state, Mapping):
            return CORRELATION_SCALE if measure == CORRELATION else Scale()
        return Scale.from_state(state)

    def trajectory(
        self, measure: str, *, layer: str | None = None, representation: str = "features", condition: str = ""
    ) -> Trajectory:
        """One measure of one layer, or of the outputs, over the course of training.

        Args:
            measure: for instance ``"cka"``, or ``"jsd"``, which belongs to the outputs and takes no layer.
            layer: name of a layer of the network.
            representation: for measures of layers; ``"weights"`` for wCKA.
            condition: of the samples; empty for the samples as they are.

        Raises:
            ValueError: if nothing of that name was measured; the message says what was.
        """
        check_asked(measure, layer, representation)
        key = Key(measure, None if layer is None else representation, layer, condition)
        found = self.trajectory_of(key)
        if not len(found):
            raise ValueError(unknown(key, representation, self.keys, self.layers))
        return found

    def trajectory_of(self, key: Key) -> Trajectory:
        """The trajectory of one of `keys`; empty for what was never measured."""
        if key == Key("seconds"):
            found = [(m, m.seconds) for m in self.measurements if m.seconds is not None]
        else:
            found = [(m, m.by_key[key]) for m in self.measurements if key in m.by_key]
        return Trajectory(
            key.name,
            np.array([m.epoch for m, _ in found], dtype=np.int64),
            np.array([m.step for m, _ in found], dtype=np.int64),
            np.array([value for _, value in found], dtype=np.float64),
        )

    def matrix(
        self, measure: str = "cka", *, representation: str = "features", epoch: int | None = None, condition: str = ""
    ) -> SimilarityMatrix:
        """The layer x layer matrix of one measure: the last one, or the last one of an epoch.

        Raises:
            ValueError: if there is none; the message says which there are.
        """
        check_asked(measure, None, representation, epoch)
        key = Key(measure, representation, None, condition)
        for measurement in reversed(self.measurements):
            if epoch is None or measurement.epoch == epoch:
                for matrix in measurement.matrices:
                    if matrix.key == key:
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
            first: a measure, of layers or of outputs; the x of the slope.
            second: the other one; a trajectory of outputs belongs to every layer.
            layer: name of a layer of the network.
            representation: for measures of layers.
            epoch: over layers: the last measurement of this epoch; the very last one by default.
            method: ``"pearson"`` or ``"spearman"``.
            confidence: coverage of the interval.

        Returns:
            ``CorrelationResult(value, low, high, p_value, slope)``; all NaN for fewer than four pairs of finite
            numbers, and where one measure does not move beyond the rounding of float32.

        Raises:
            ValueError: if nothing of these names was measured; the message says what was.
        """
        check_choice(method, "method", ("pearson", "spearman"))
        if not 0 < check_number(confidence, "confidence") < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {confidence}")
        for measure in (first, second):
            check_asked(measure, layer, representation, epoch)
        layered = [not any(Key(measure) in m.by_key for m in self.measurements) for measure in (first, second)]
        if all(layered) and layer is None:
            x, y = self._over_layers(first, second, representation, epoch)
        elif epoch is not None:
            raise ValueError(f"`epoch` is for correlations over layers, without `layer`; got epoch {epoch}")
        else:
            x, y = (
                self._over_measurements(measure, layer if of_layers else None, representation)
                for measure, of_layers in zip((first, second), layered, strict=True)
            )
        return correlate(x, y, method, confidence)

    def to_records(self, *, matrices: bool = False) -> list[dict[str, Any]]:
        """One dictionary per number, with the columns ``run, epoch, step, measure, representation, condition, layer,
        reference_layer, value``.

        Representation, layer and reference_layer are None for measures of outputs and of whole networks;
        reference_layer is None as well where the source does not say which it was. ``seconds`` is a row too.

        Args:
            matrices: add the cells of the layer x layer matrices, except those that are rows already.
        """
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*self._columns(matrices), strict=True)]

    def to_pandas(self, *, matrices: bool = False) -> pandas.DataFrame:
        """The rows of `to_records` as a data frame; needs the extra ``pandas``.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return data_frame(self._columns(matrices))

    def plot(self) -> Figure:
        """Trajectories of every measure and the last matrix, as a figure; needs the extra ``plot``."""
        last = next((m for m in reversed(self.measurements) if m.matrices), None)
        figure, left = panel_grid(self.run or "", self.panels(), extra=0 if last is None else 1)
        if last is not None:
            matrix = last.matrices[0]
            title = f"{matrix.measure}, {matrix.representation}, epoch {last.epoch}"
            heatmap = matrix.heatmap(title, self.scale(matrix.measure))
            draw_heatmap(left[0], heatmap, 2.6 / max(matrix.values.shape))
        return figure

    def panels(self) -> list[Panel]:
        """What charts show: the layers of each measure and representation, and what belongs to no layer by group."""
        of_layers: dict[Key, dict[str, Trajectory]] = {}
        others: dict[str, dict[str, Trajectory]] = {}
        order = {layer: index for index, layer in enumerate(self.layers)}
        for key in sorted(self.keys, key=lambda key: order.get(key.layer or "", -1)):
            if key.layer is not None:
                of_layers.setdefault(key._replace(layer=None), {})[key.layer] = self.trajectory_of(key)
            else:
                scale = self.scale(key.measure)
                others.setdefault(scale.group if scale.bounded else key.name, {})[key.name] = self.trajectory_of(key)
        return [
            *(Panel(", ".join(filter(None, kind)), lines, by_depth=True) for kind, lines in of_layers.items()),
            *(Panel(title, lines) for title, lines in others.items()),
        ]

    @staticmethod
    def concatenate(histories: Mapping[str, SimilarityHistory], *, matrices: bool = False) -> pandas.DataFrame:
        """The tables of several runs below one another; needs the extra ``pandas``.

        Args:
            histories: the runs by the names that they get in the column ``run``.
            matrices: as in `to_records`.
        """
        if not isinstance(histories, Mapping):
            raise ValueError(f"`histories` must map names to histories, got {described(histories)}")
        joined: list[list[Any]] = [[] for _ in COLUMNS]
        for run, history in histories.items():
            columns = history._columns(matrices)
            columns[0] = [run] * len(columns[0])
            for target, column in zip(joined, columns, strict=True):
                target.extend(column)
        return data_frame(joined)

    @staticmethod
    def compare(histories: Sequence[SimilarityHistory | str | Path], *, matrices: bool = False) -> pandas.DataFrame:
        """The former name of `concatenate`, which nothing is compared in; runs of the same name are numbered."""
        warnings.warn(
            "SimilarityHistory.compare is now SimilarityHistory.concatenate({name: history})",
            DeprecationWarning,
            stacklevel=2,
        )
        if isinstance(histories, str | Path | SimilarityHistory) or not isinstance(histories, Iterable):
            raise ValueError(f"`histories` must be a list of histories or paths, got {described(histories)}")
        named: dict[str, SimilarityHistory] = {}
        for item in histories:
            history = item if isinstance(item, SimilarityHistory) else read_history(item)
            named[_free_name(history.run or "run", set(named))] = history
        return SimilarityHistory.concatenate(named, matrices=matrices)

    def save(self, directory: Path | str) -> Path:
        """Write a record, which `read_history` and ``lightning-sim report`` read.

        Args:
            directory: made when needed; where a record is already, the first free of ``<directory>-1``, ``-2``, ...

        Returns:
            The directory of the record.

        Raises:
            OSError: if it cannot be written.
        """
        writer = RecordWriter(Path(directory), self.metadata, self.measurements)
        try:
            return writer.claim()
        finally:
            writer.close()

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

    def _columns(self, matrices: bool) -> list[list[Any]]:
        return tidy_columns(self.run, self._reference_layers(), self.measurements, matrices=matrices)

    def _over_measurements(
        self, measure: str, layer: str | None, representation: str
    ) -> NDArray[np.float64]:
        """(measurements,), NaN where it was not measured."""
        self.trajectory(measure, layer=layer, representation=representation)  # refuses what was never measured
        key = Key(measure, None if layer is None else representation, layer)
        return np.array([m.by_key.get(key, np.nan) for m in self.measurements])

    def _over_layers(
        self, first: str, second: str, representation: str, epoch: int | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two measures of every layer that has both, at one measurement."""
        found = [m for m in self.measurements if epoch is None or m.epoch == epoch]
        if not found:
            at = "" if epoch is None else f" at epoch {epoch}"
            raise ValueError(f"nothing was measured{at}; epochs are {_shortened(self.epochs) or 'none'}")
        values = found[-1].by_key
        keys = [[Key(measure, representation, layer) for layer in self.layers] for measure in (first, second)]
        for measure, wanted in zip((first, second), keys, strict=True):
            if values.keys().isdisjoint(wanted):
                held = ", ".join(self.measures) or "nothing yet"
                raise ValueError(f"no layer has {measure}/{representation} in this measurement; measured was {held}")
        pairs = [(values[x], values[y]) for x, y in zip(*keys, strict=True) if x in values and y in values]
        x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return x, y


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
    if not isinstance(path, str | PathLike):
        raise ValueError(f"`path` must be the path of a run, got {described(path)}")
    return SimilarityHistory(*read_run(Path(path), source, check_text(name, "name")))


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def _shortened(numbers: Sequence[int]) -> str:
    if len(numbers) > 8:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers))
