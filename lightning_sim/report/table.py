"""The summary as a table for the terminal, with sparklines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from lightning_sim._labels import printable, shortened
from lightning_sim._measurement import FISHER_MEASURES, has_own_unit
from lightning_sim.report.summary import Row

__all__ = ["sparkline", "summary_table"]

_BARS = "▁▂▃▄▅▆▇█"
_STILL = 0.01  # change over the whole run, along the trend, below which an arrow would mislead


def summary_table(rows: Sequence[Row], *, width: int = 80) -> Table:
    """A section per measure of layers; sparklines of one measure share their scale, so that layers can be compared.

    Args:
        rows: From `summarize`.
        width: Of the terminal, in letters: a wide one gets longer sparklines.
    """
    bars = 12 if width < 100 else 24
    run_letters = min(max((len(row.run) for row in rows), default=0), 14) if len({row.run for row in rows}) > 1 else 0
    layer_letters = max(width - run_letters - bars - 42, 12)  # what the numbers leave
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="dim")
    table.add_column("layer", no_wrap=True)
    if run_letters:
        table.add_column("run", no_wrap=True)
    for name in ("first", "last", "min", "epoch", "trend"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for title, section in _sections(rows).items():
        scales = {measure: _scale(section, measure) for measure in {row.measure for row in section}}
        table.add_row(Text(title, style="bold"))
        previous = None
        for row in section:
            label = row.measure if row.layer is None else row.layer
            cells = [Text("" if label == previous else f"  {shortened(label, layer_letters)}")]
            cells += [Text(shortened(row.run, run_letters), style="dim")] * bool(run_letters)
            cells += [_number(value, row.measure) for value in (row.first, row.last, row.minimum)]
            cells += [Text("-" if row.epoch_of_minimum is None else str(row.epoch_of_minimum)), _trend(row)]
            table.add_row(*cells, Text(sparkline(row.values, *scales[row.measure], bars), style="cyan"))
            previous = label
    return table


def sparkline(values: NDArray[np.float64], low: float, high: float, most: int = 24) -> str:
    """At most `most` bars, of means where there are more values; a middle dot where there is no finite value.

    Example:
        >>> sparkline(np.array([0.0, 0.5, np.nan, 1.0]), 0.0, 1.0)
        '▁▅·█'
    """
    bars = []
    for part in np.array_split(values, min(len(values), most)) if len(values) else ():
        finite = part[np.isfinite(part)]
        if not len(finite):
            bars.append("·")
        else:
            height = (finite.mean() - low) / (high - low) if high > low else 0.5
            bars.append(_BARS[min(max(int(height * len(_BARS)), 0), len(_BARS) - 1)])
    return "".join(bars)


def _scale(rows: Sequence[Row], measure: str) -> tuple[float, float]:
    values = np.concatenate([row.values for row in rows if row.measure == measure])
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _sections(rows: Sequence[Row]) -> dict[str, list[Row]]:
    def title(row: Row) -> str:
        if row.layer is None:
            return "parameters" if row.measure in FISHER_MEASURES else "outputs"
        return printable(f"{row.measure}, {row.representation}")

    return {name: list(section) for name, section in itertools.groupby(rows, title)}


def _trend(row: Row) -> Text:
    if math.isnan(row.trend):
        return Text("-", style="dim")
    change = row.trend * len(row.values)
    unit = abs(row.last) if has_own_unit(row.measure) else 1.0
    arrow = "→" if abs(change) < _STILL * unit else ("↗" if change > 0 else "↘")
    if has_own_unit(row.measure):
        return Text(f"{arrow} {'-' if row.trend < 0 else '+'}{_short(abs(row.trend))}")
    return Text(f"{arrow} {row.trend:+.4f}")


def _number(value: float, measure: str) -> Text:
    if math.isnan(value):
        return Text("NaN", style="red")
    if has_own_unit(measure):
        return Text(_short(value))
    return Text(f"{round(value, 3) + 0.0:.3f}")  # adding zero takes the sign from -0.000


def _short(value: float) -> str:
    """A length of any size in at most six letters."""
    if value == 0 or 0.01 <= value < 1e5:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
