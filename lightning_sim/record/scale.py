"""How the numbers of a measure are to be read, so that every view shows them right without knowing the measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Scale"]


@dataclass(frozen=True)
class Scale:
    """The range of a measure, which end of it means "the same", its unit, and what charts show it with.

    Args:
        low: the lowest value that charts show; values may lie beyond by noise. None where there is none.
        high: the highest; None for lengths of any size.
        same: the value of a network compared with itself; None where nothing is compared.
        unit: for instance ``"nats"``; empty for pure numbers.
        group: the title under which charts and tables show values that belong to no layer.

    Raises:
        ValueError: when `low` is not below `high`.

    Example:
        >>> from lightning_sim.measures import Scale
        >>> Scale(low=0, high=1, same=1).bounded, Scale(low=0, same=0).bounded
        (True, False)
    """

    low: float | None = None
    high: float | None = None
    same: float | None = None
    unit: str = ""
    group: str = "outputs"

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, got {self.low} and {self.high}")

    @property
    def bounded(self) -> bool:
        """Whether both ends are known: 0.001 is little then, and one chart can show several such measures."""
        return self.low is not None and self.high is not None

    def chart(self, name: str) -> str:
        """Title of the chart for a value of no layer: its group, or `name` where its range is its own."""
        return self.group if self.bounded else name

    def to_state(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Scale:
        """The inverse of `to_state`; what a newer version added is left out."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})
