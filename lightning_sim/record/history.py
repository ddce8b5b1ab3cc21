"""The queryable record of a monitored run: trajectories, matrices and tidy tables, in memory or read back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sim._arguments import described
from lightning_sim.figures import Panel, draw_heatmap, panel_grid
from lightning_sim.figures.moments import moment, placed
from lightning_sim.functional.correlation import CorrelationResult
from lightning_sim.record.asking import asked_key, found_matrix, keys_of, layers_of, listed
from lightning_sim.record.change import Change, change_between
from lightning_sim.record.correlations import Method, correlate, paired
from lightning_sim.record.file import RecordWriter
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix
from lightning_sim.record.reading import read_run
from lightning_sim.record.scale import Scale
from lightning_sim.record.table import COLUMNS, data_frame, joined, of_measure, tidy_columns, wide_frame
from lightning_sim.record.trajectory import Trajectory, panels_of, trajectory_over

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["SimilarityHistory"]


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
        return keys_of(self.measurements)

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
        return layers_of(self.keys, self._order())

    @property
    def epochs(self) -> list[int]:
        """The epochs that were measured, without repetition."""
        return list(dict.fromkeys(measurement.epoch for measurement in self.measurements))

    def scale(self, measure: str) -> Scale:
        """How the values of a measure are to be read; an unknown range where the source does not say."""
        scales = self.metadata.get("scales")
        state = scales.get(measure) if isinstance(scales, Mapping) else None
        return Scale.from_state(state) if isinstance(state, Mapping) else Scale()

    def trajectory(
        self, measure: str, *, layer: str | None = None, representation: str = "features", condition: str = ""
    ) -> Trajectory:
        """One measure of one layer, or of the outputs, over the course of training.

        Args:
            measure: for instance ``"cka"``, or ``"jsd"``, which belongs to the outputs and takes no layer.
            layer: name of a layer of the network, or its end after a dot, where only one of those measured ends so.
            representation: for measures of layers; ``"weights"`` for wCKA.
            condition: of the samples; empty for the samples as they are.

        Nothing of that name is a ValueError, which says what was measured.
        """
        key = asked_key(self.measurements, self._order(), measure, layer, representation, condition)
        return self.trajectory_of(key)

    def change(
        self,
        measure: str,
        layer: str | None = None,
        *,
        from_epoch: int | None = None,
        to_epoch: int | None = None,
        **of: str,
    ) -> Change:
        """How much a `trajectory` has changed: from start to end, or these epochs, of which others are a ValueError."""
        return change_between(self.trajectory(measure, layer=layer, **of), from_epoch, to_epoch)

    def trajectory_of(self, key: Key) -> Trajectory:
        """The trajectory of one of `keys`; empty for what was never measured."""
        return trajectory_over(self.measurements, key)

    def matrix(
        self,
        measure: str = "cka",
        *,
        representation: str = "features",
        epoch: int | None = None,
        step: int | None = None,
        condition: str = "",
    ) -> SimilarityMatrix:
        """The last layer x layer matrix of a measure, or of an epoch or step; a ValueError says which there are."""
        return found_matrix(self.measurements, measure, representation, condition, epoch, step)

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
        condition: str = "",
    ) -> CorrelationResult:
        """How two measures move together: over the measurements, or over the layers within one of them.

        With `layer`, and between two measures of outputs, it is over the measurements, as in "does CKA of this layer
        fall when the outputs diverge?"; else over the layers of one, as in "do CKA and NBS order the layers alike?".
        Values are treated as exact, and measurements of one run are not independent: the interval over them is too
        narrow and the p-value too small.

        Args:
            first: a measure, of layers or of outputs; the x of the slope.
            second: the other one; a trajectory of outputs belongs to every layer.
            layer: as in `trajectory`, like `representation` and `condition`, which hold for both measures.
            representation: likewise.
            epoch: over layers: the last measurement of this epoch; the very last one by default.
            method: ``"pearson"`` or ``"spearman"``.
            confidence: coverage of the interval.
            condition: likewise.

        Returns:
            ``CorrelationResult(value, low, high, p_value, slope)``; all NaN for fewer than four pairs of finite
            numbers, and where one measure does not move beyond the rounding of float32.

        Raises:
            ValueError: if nothing of these names was measured.
        """
        x, y = paired(self.measurements, self._order(), (first, second), layer, representation, condition, epoch)
        return correlate(x, y, method, confidence)

    def to_records(self, *, matrices: bool = False) -> list[dict[str, Any]]:
        """One dictionary per number, with the columns ``run, epoch, step, measure, representation, condition, layer,
        reference_layer, value``, and what stands beside the value (:data:`lightning_sim.record.STATISTICS`) or None.

        Representation, layer and reference_layer are None for measures of outputs and of whole networks;
        reference_layer is None as well where the source does not say which it was. ``seconds`` is a row too.

        Args:
            matrices: add the cells of the layer x layer matrices, except those that are rows already.
        """
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*self._columns(matrices), strict=True)]

    def to_pandas(self, *, matrices: bool = False, measure: str | None = None, wide: bool = False) -> pandas.DataFrame:
        """The rows of `to_records` as a data frame; needs the extra ``pandas``.

        Args:
            matrices: as in `to_records`.
            measure: only the rows of this one.
            wide: a row for each measurement, (epoch, step), and a column for each number instead: by its layer where
                all are of one kind, else by its logged name, and ``against`` which layer of the reference in matrices.

        Raises:
            ValueError: if the measure was never measured; the message says what was.
        """
        columns = self._columns(matrices)
        if measure is not None:
            columns = of_measure(columns, measure)
        return wide_frame(columns) if wide else data_frame(columns)

    def plot(self) -> Figure:
        """Trajectories of every measure and the last matrix, as a figure; needs the extra ``plot``."""
        held = [(at, m.matrices) for at, m in placed(self.measurements) if m.matrices]
        figure, left = panel_grid(self.run or "", self.panels(), extra=1 if held else 0)
        for at, (matrix, *_) in held[-1:]:
            heatmap = matrix.heatmap(f"{matrix.key.title}, {moment(at)}", self.scale(matrix.measure))
            draw_heatmap(left[0], heatmap, 2.6 / max(matrix.values.shape))
        return figure

    def panels(self) -> list[Panel]:
        """What charts show: the layers of each measure and representation, and what belongs to no layer by group."""
        order = {layer: index for index, layer in enumerate(self.layers)}
        keys = sorted(self.keys, key=lambda key: order.get(key.layer or "", -1))
        return panels_of({key: self.trajectory_of(key) for key in keys}, self.scale)

    @staticmethod
    def concatenate(histories: Mapping[str, SimilarityHistory], *, matrices: bool = False) -> pandas.DataFrame:
        """The tables of several runs below one another; needs the extra ``pandas``.

        `histories` are the runs by the names that they get in the column ``run``; `matrices` as in `to_records`.
        """
        if not isinstance(histories, Mapping):
            raise ValueError(f"`histories` must map names to histories, got {described(histories)}")
        return data_frame(joined((run, history._columns(matrices)) for run, history in histories.items()))

    @staticmethod
    def compare(histories: Sequence[SimilarityHistory | str | Path], *, matrices: bool = False) -> pandas.DataFrame:
        """The former name of `concatenate`, which nothing is compared in; runs of the same name are numbered."""
        now = "SimilarityHistory.compare is now SimilarityHistory.concatenate({name: history})"
        warnings.warn(now, DeprecationWarning, stacklevel=2)
        if isinstance(histories, str | Path | SimilarityHistory) or not isinstance(histories, Iterable):
            raise ValueError(f"`histories` must be a list of histories or paths, got {described(histories)}")
        read = [h if isinstance(h, SimilarityHistory) else SimilarityHistory(*read_run(h)) for h in histories]
        return data_frame(joined((history.run or "run", history._columns(matrices)) for history in read))

    def save(self, directory: Path | str) -> Path:
        """Write a record, which `read_history` and ``lightning-sim report`` read, and return where it lies.

        That is the directory, made when needed, or where it has a record the first free of ``<directory>-1`` and so on.
        """
        writer = RecordWriter(directory, self.metadata, self.measurements)
        try:
            return writer.claim()
        finally:
            writer.close()

    def to_state(self) -> dict[str, Any]:
        """The history as primitives and tensors."""
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
        held = f"{len(self)} measurements, epochs {listed(self.epochs)}, {', '.join(self.measures)}"
        return f"SimilarityHistory({run}{held}, {len(self.layers)} layers)"

    def _order(self) -> Mapping[str, str]:
        """The network's layers, each with its counterpart, as far as the metadata knows them."""
        layers = self.metadata.get("layers")
        return layers if isinstance(layers, Mapping) else {}

    def _columns(self, matrices: bool) -> list[list[Any]]:
        return tidy_columns(self.run, self._order(), self.measurements, matrices=matrices)
