"""What one measurement yields: numbers by key and layer x layer matrices, always in float32 precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_sim.figures import Heatmap, heatmap_figure
from lightning_sim.record.key import Key, parse_name
from lightning_sim.record.naming import derived
from lightning_sim.record.scale import Scale
from lightning_sim.record.statistics import STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Measurement", "SimilarityMatrix"]

_SECONDS = Key("seconds")


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """One measure between every layer of the network and every layer of the reference.

    Args:
        measure: for instance ``"cka"``.
        representation: for instance ``"features"``.
        rows: layers of the network.
        columns: layers of the reference.
        values: shape (rows, columns), kept as float32; NaN where a value could not be computed, or is infinite.
        condition: what was done to the samples; empty for the samples as they are.
        chance_deviations: how far from 0 unrelated layers read, as a standard deviation: one number, or shape (rows,
            columns), kept as float16; None where that is not known.

    Raises:
        ValueError: if `values` or `chance_deviations` do not have the shape (rows, columns), or it is empty.
    """

    measure: str
    representation: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[Any]
    condition: str = ""
    chance_deviations: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "values", _as_float32(self.values))
        if self.chance_deviations is not None:
            found = np.broadcast_to(np.array(self.chance_deviations, dtype=np.float16), self.values.shape)
            object.__setattr__(self, "chance_deviations", np.where(np.isnan(self.values), np.float16(np.nan), found))
        if self.values.shape != (len(self.rows), len(self.columns)) or not self.values.size:
            raise ValueError(
                f"`values` of the {self.measure!r} matrix must have the shape (rows, columns) = "
                f"({len(self.rows)}, {len(self.columns)}), got {self.values.shape}"
            )

    @property
    def key(self) -> Key:
        """Measure, representation and condition, without a layer."""
        return Key(self.measure, self.representation, None, self.condition)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SimilarityMatrix):
            return NotImplemented
        mine, theirs = self.chance_deviations, other.chance_deviations
        return (
            (self.key, self.rows, self.columns, mine is None) == (other.key, other.rows, other.columns, theirs is None)
            and np.array_equal(self.values, other.values, equal_nan=True)
            and (mine is None or theirs is None or np.array_equal(mine, theirs, equal_nan=True))
        )

    @property
    def explained_by_chance(self) -> NDArray[np.bool_]:
        """Cells within three deviations of what unrelated layers read, shape (rows, columns); none where not known."""
        if self.chance_deviations is None:
            return np.zeros(self.values.shape, dtype=np.bool_)
        found: NDArray[np.bool_] = np.abs(self.values) < 3 * self.chance_deviations.astype(np.float32)
        return found

    @property
    def distinct_chance_deviations(self) -> NDArray[np.float16] | None:
        """`chance_deviations`, or the one number that all of them are, for what keeps them."""
        if self.chance_deviations is None:
            return None
        known = np.unique(self.chance_deviations[~np.isnan(self.chance_deviations)])
        return known[0] if len(known) == 1 else self.chance_deviations

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        return f"SimilarityMatrix({self.key.title}, {rows} x {columns} layers)"

    def plot(self, title: str | None = None, *, scale: Scale | None = None) -> Figure:
        """The matrix as a heatmap; needs the extra ``plot``.

        Args:
            title: above it; measure, representation and condition if None.
            scale: of the measure, whose range the colours span; that of the values if None.
        """
        return heatmap_figure(self.heatmap(title, scale))

    def heatmap(self, title: str | None = None, scale: Scale | None = None) -> Heatmap:
        """What `plot` draws."""
        scale = scale or Scale()
        shown = self.key.title if title is None else title
        by_chance = None if self.chance_deviations is None else self.explained_by_chance
        return Heatmap(self.values, self.rows, self.columns, shown, scale.low, scale.high, hatched=by_chance)

    def to_state(self) -> dict[str, Any]:
        """The matrix as strings, lists and tensors."""
        chance: Any = self.distinct_chance_deviations
        if chance is not None:
            chance = torch.from_numpy(chance.copy()) if chance.ndim else float(chance)
        return {
            "measure": self.measure,
            "representation": self.representation,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": torch.from_numpy(self.values.copy()),
            "condition": self.condition,
            "chance_deviations": chance,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SimilarityMatrix:
        """The inverse of `to_state`."""
        chance = state.get("chance_deviations")
        return cls(
            str(state["measure"]),
            str(state["representation"]),
            tuple(state["rows"]),
            tuple(state["columns"]),
            state["values"].cpu().numpy(),
            str(state.get("condition", "")),
            chance.cpu().numpy() if isinstance(chance, torch.Tensor) else chance,
        )


class Measurement:
    """Everything measured at one moment of training.

    Numbers are rounded to float32, and infinite ones are NaN, so that memory, loggers, checkpoint and record hold
    identical ones.

    Args:
        epoch: epochs completed before the one in which was measured, as Lightning counts them.
        step: the step under which loggers have the scalars.
        values: the numbers by :class:`lightning_sim.measures.Key`, or by logged name: ``<measure>/<representation>/
            <layer>`` for layers, ``<measure>`` for outputs, and ``seconds`` for what the measuring took.
        matrices: the layer x layer matrices of this moment.
        statistics: what stands beside the numbers, by its name (`lightning_sim.record.STATISTICS`) and key; NaN is as
            none.
        notes: what is to be known of single numbers, in words.

    Raises:
        ValueError: for values that are no numbers, and statistics of other names.

    Attributes:
        by_key: the numbers by key.
        seconds: what the measuring took; None where it is not known.

    Example:
        >>> measurement = Measurement(epoch=2, step=30, values={"cka/features/layer3": 0.5, "jsd": 0.25})
        >>> measurement.by_key[Key("cka", "features", "layer3")], measurement.values["jsd"]
        (0.5, 0.25)
    """

    def __init__(
        self,
        epoch: int,
        step: int,
        values: Mapping[Key, float] | Mapping[str, float] | Mapping[Key | str, float],
        matrices: Sequence[SimilarityMatrix] = (),
        statistics: Mapping[str, Mapping[Key, float]] | None = None,
        notes: Mapping[Key, str] | None = None,
    ) -> None:
        self.epoch = int(epoch)
        self.step = int(step)
        self.matrices = matrices
        numbers = _as_float32(list(values.values()))
        if numbers.ndim != 1:
            raise ValueError(f"`values` must map names to numbers, got an array of shape {numbers.shape}")
        # The same keys come with every measurement: shared, they keep long histories and checkpoints small.
        keys = (_parsed(key) if isinstance(key, str) else _shared(key) for key in values)
        self.by_key: dict[Key, float] = dict(zip(keys, numbers.tolist(), strict=True))
        self.seconds: float | None = self.by_key.pop(_SECONDS, None)
        if unknown := set(statistics or {}) - set(STATISTICS):
            raise ValueError(f"`statistics` are {', '.join(STATISTICS)}; got {', '.join(map(repr, sorted(unknown)))}")
        self.statistics: dict[str, dict[Key, float]] = {}
        for name, of_keys in (statistics or {}).items():
            numbers = _as_float32(list(of_keys.values())).tolist()
            held = zip(map(_shared, of_keys), numbers, strict=True)
            self.statistics[name] = {key: number for key, number in held if not math.isnan(number)}
        self.notes = {_shared(key): str(note) for key, note in (notes or {}).items()}

    @property
    def values(self) -> dict[str, float]:
        """The numbers by the names under which loggers have them, ``seconds`` among them."""
        found = {_name(key): value for key, value in self.by_key.items()}
        return found if self.seconds is None else found | {_SECONDS.name: self.seconds}

    def number(self, key: Key) -> float | None:
        """The number of a key, ``Key("seconds")`` among them; None where it was not measured."""
        return self.seconds if key == _SECONDS else self.by_key.get(key)

    def statistic(self, name: str, key: Key) -> float | None:
        """What stands beside the number of a key; None where nothing does."""
        return self.statistics.get(name, {}).get(key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        mine, theirs = self.values, other.values
        return (
            (self.epoch, self.step, list(mine)) == (other.epoch, other.step, list(theirs))
            and np.array_equal(list(mine.values()), list(theirs.values()), equal_nan=True)
            and tuple(self.matrices) == tuple(other.matrices)
            and (self.statistics, self.notes) == (other.statistics, other.notes)
        )

    __hash__ = None  # type: ignore[assignment]  # it holds a dictionary

    def __repr__(self) -> str:
        held = f"{len(self.by_key)} values, {len(self.matrices)} matrices"
        return f"Measurement(epoch={self.epoch}, step={self.step}, {held})"

    def to_state(self) -> dict[str, Any]:
        """The measurement as primitives and tensors, which checkpoints load without running code."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "values": self.values,
            "matrices": [matrix.to_state() for matrix in self.matrices],
            "statistics": {
                name: {_name(key): value for key, value in held.items()} for name, held in self.statistics.items()
            },
            "notes": {_name(key): note for key, note in self.notes.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_state`."""
        matrices = tuple(SimilarityMatrix.from_state(matrix) for matrix in state["matrices"])
        # Earlier versions kept correlations among the values.
        values = {name: value for name, value in state["values"].items() if not derived(name)}
        statistics = {
            name: {_parsed(key): value for key, value in held.items()}
            for name, held in state.get("statistics", {}).items()
        }
        notes = {_parsed(key): note for key, note in state.get("notes", {}).items()}
        return cls(state["epoch"], state["step"], values, matrices, statistics, notes)


@functools.lru_cache(maxsize=65536)
def _shared(key: Key) -> Key:
    return key


@functools.lru_cache(maxsize=65536)
def _parsed(name: str) -> Key:
    return _shared(parse_name(name))


@functools.lru_cache(maxsize=65536)
def _name(key: Key) -> str:
    return key.name


def _as_float32(values: Iterable[Any] | NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond the range of float32 is infinite
        numbers = np.array(values, dtype=np.float32)  # a copy: what was measured does not change
    numbers[np.isinf(numbers)] = np.nan
    return numbers
