"""What one measurement yields: named numbers and layer x layer matrices, always in float32 precision."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["FISHER_MEASURES", "Measurement", "SimilarityMatrix", "has_own_unit", "split_name"]

FISHER_MEASURES = ("fisher_rao_norm", "fisher_rao_distance", "task2vec")  # of the parameters as a whole
_WITH_OWN_UNIT = ("mean_embedding", "fisher_rao_norm", "fisher_rao_distance")


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """One measure between every layer of the network and every layer of the reference.

    Args:
        measure: For instance ``"cka"``.
        representation: For instance ``"features"``.
        rows: Layers of the network.
        columns: Layers of the reference.
        values: Shape (rows, columns), kept as float32; NaN where a value could not be computed, or is infinite.

    Raises:
        ValueError: If `values` does not have the shape (rows, columns), or is empty.
    """

    measure: str
    representation: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "values", _as_float32(self.values))
        if self.values.shape != (len(self.rows), len(self.columns)) or not self.values.size:
            raise ValueError(
                f"`values` of the {self.measure!r} matrix must have the shape (rows, columns) = "
                f"({len(self.rows)}, {len(self.columns)}), got {self.values.shape}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SimilarityMatrix):
            return NotImplemented
        names = ("measure", "representation", "rows", "columns")
        return all(getattr(self, name) == getattr(other, name) for name in names) and np.array_equal(
            self.values, other.values, equal_nan=True
        )

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        return f"SimilarityMatrix({self.measure}/{self.representation}, {rows} x {columns} layers)"

    def plot(self) -> Any:
        """The matrix as a heatmap, a ``matplotlib.figure.Figure``; needs the extra ``plot``."""
        from lightning_sim.figures import matrix_figure

        return matrix_figure(self)

    def to_state(self) -> dict[str, Any]:
        """The matrix as strings, lists and one tensor."""
        return {
            "measure": self.measure,
            "representation": self.representation,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": torch.from_numpy(self.values.copy()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SimilarityMatrix:
        """The inverse of `to_state`."""
        return cls(
            str(state["measure"]),
            str(state["representation"]),
            tuple(state["rows"]),
            tuple(state["columns"]),
            state["values"].cpu().numpy(),
        )


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything measured at one moment of training.

    Values are rounded to float32, and infinite ones are NaN, so that memory, loggers, checkpoint and record hold
    identical numbers.

    Args:
        epoch: Epochs completed before the one in which was measured, as Lightning counts them.
        step: The step under which loggers have the scalars.
        values: ``<measure>/<representation>/<layer>`` for layers, ``<measure>`` for outputs, for example
            ``{"cka/features/layer3": 0.93, "jsd": 0.1, "seconds": 1.2}``. A layer's name may hold any
            character, also ``/``.
        matrices: The layer x layer matrices of this moment.

    Example:
        >>> measurement = Measurement(epoch=2, step=30, values={"cka/features/layer3": 0.5, "jsd": 0.25})
        >>> measurement.values["jsd"]
        0.25
    """

    epoch: int
    step: int
    values: dict[str, float]
    matrices: Sequence[SimilarityMatrix] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "epoch", int(self.epoch))
        object.__setattr__(self, "step", int(self.step))
        numbers = _as_float32(list(self.values.values()))
        if numbers.ndim != 1:
            raise ValueError(f"`values` must map names to numbers, got an array of shape {numbers.shape}")
        # The same names come with every measurement: shared, they keep long histories and checkpoints small.
        names = map(sys.intern, self.values)
        object.__setattr__(self, "values", dict(zip(names, numbers.tolist(), strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        return (
            (self.epoch, self.step) == (other.epoch, other.step)
            and list(self.values) == list(other.values)
            and np.array_equal(list(self.values.values()), list(other.values.values()), equal_nan=True)
            and tuple(self.matrices) == tuple(other.matrices)
        )

    def __repr__(self) -> str:
        held = f"{len(self.values)} values, {len(self.matrices)} matrices"
        return f"Measurement(epoch={self.epoch}, step={self.step}, {held})"

    def to_state(self) -> dict[str, Any]:
        """The measurement as primitives and tensors, which checkpoints load without running code."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "values": dict(self.values),
            "matrices": [matrix.to_state() for matrix in self.matrices],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_state`."""
        matrices = tuple(SimilarityMatrix.from_state(matrix) for matrix in state["matrices"])
        return cls(state["epoch"], state["step"], state["values"], matrices)


@functools.lru_cache(maxsize=65536)
def split_name(name: str) -> tuple[str, str | None, str | None]:
    """Measure, representation and layer of a logged name; None where the name holds none.

    Example:
        >>> split_name("cka/features/encoder/layer3"), split_name("jsd")
        (('cka', 'features', 'encoder/layer3'), ('jsd', None, None))
    """
    measure, *rest = name.split("/", 2)
    return measure, rest[0] if rest else None, rest[1] if len(rest) > 1 else None


def has_own_unit(measure: str) -> bool:
    """Whether a measure is a length of any size, and not a similarity of which 0.001 is little."""
    return measure in _WITH_OWN_UNIT


def _as_float32(values: Iterable[Any] | NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond the range of float32 is infinite
        numbers = np.array(values, dtype=np.float32)  # a copy: what was measured does not change
    numbers[np.isinf(numbers)] = np.nan
    return numbers
