"""One measured figure with its bar, and the table of all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.benchmarks.timing import Rounds

__all__ = ["Figure", "ratio_figure", "table"]


@dataclass
class Figure:
    """A number, what it is to be held against, and what it was made from.

    Attributes:
        name: what was measured.
        value: None where it could not be; `note` says why.
        unit: of the value: ``"x"`` for a ratio, ``"s"``, ``"MB"``, or empty.
        bar: what the value is to be at most (at least, if `at_least`), where there is a bar.
        spread: smallest and largest of the rounds.
        seconds: contender -> time of every round.
    """

    name: str
    value: float | None
    unit: str = "x"
    bar: float | None = None
    at_least: bool = False
    spread: tuple[float, float] | None = None
    note: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.bar is None or self.value is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def ratio_figure(
    name: str,
    rounds: Rounds,
    numerator: str,
    denominator: str,
    *,
    bar: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> Figure:
    """Median and spread of the rounds' ratios of two contenders."""
    ratios = rounds.ratios(numerator, denominator)
    return Figure(
        name,
        statistics.median(ratios),
        bar=bar,
        at_least=at_least,
        spread=(min(ratios), max(ratios)),
        note=note,
        seconds=rounds.seconds,
    )


def table(figures: Sequence[Figure]) -> str:
    """Aligned columns: name, measured, range over the rounds, bar, met, note."""
    header = ("name", "measured", "rounds", "bar", "met", "")
    rows = [header] + [
        (
            figure.name,
            _number(figure.value, figure.unit),
            f"{_number(figure.spread[0])} .. {_number(figure.spread[1])}" if figure.spread else "",
            "" if figure.bar is None else f"{'>=' if figure.at_least else '<='} {_number(figure.bar, figure.unit)}",
            {True: "yes", False: "NO", None: ""}[figure.met],
            figure.note,
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "none"
    digits = f"{value:.1e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4g}"
    return f"{digits} {unit}".rstrip()
