"""The summary as a table for the terminal, with sparklines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.labels import printable, shortened
from lightning_sim.record import Scale
from lightning_sim.views.summary import Row

__all__ = ["sparkline", "summary_table"]

_BARS = "▁▂▃▄▅▆▇█"
_STILL = 0.01  # change over the whole run, along the trend, below which an arrow would mislead


def summary_table(rows: Sequence[Row], *, width: int = 80) -> str:
    """A section per measure of layers; sparklines of one measure share their scale, so that layers can be compared.

    Args:
        rows: From `summarize`. Last values have their standard error behind them.
        width: Of the terminal, in letters: a wide one gets longer sparklines.
    """
    letters_of_errors = 0 if all(math.isnan(row.standard_error) for row in rows) else 8
    bars = 24 if width >= 100 else 6 if letters_of_errors else 12
    most_of_run = 12 if letters_of_errors else 14
    run_letters = min(max(len(row.run) for row in rows), most_of_run) if len({row.run for row in rows}) > 1 else 0
    layer_letters = max(width - run_letters - bars - 42 - letters_of_errors, 12)  # what the numbers leave
    head = ["layer", *["run"] * bool(run_letters), "first", "last", "min", "epoch", "trend", ""]
    lines: list[list[str] | str] = []  # a line of one text is a title
    for title, section in _sections(rows).items():
        ranges = {measure: _range(section, measure) for measure in {row.key.measure for row in section}}
        lines.append(title)
        previous = None
        for row in section:
            label = row.key.name if row.key.layer is None else row.key.layer
            cells = ["" if label == previous else f"  {shortened(label, layer_letters)}"]
            cells += [shortened(row.run, run_letters)] * bool(run_letters)
            last = _with_error(row.last, row.standard_error, row.scale)
            cells += [_number(row.first, row.scale), last, _number(row.minimum, row.scale)]
            cells += [row.when, _trend(row)]
            lines.append([*cells, sparkline(row.values, *ranges[row.key.measure], bars)])
            previous = label
    names = dict.fromkeys(f"{row.key.title} of {row.key.layer}" for row in rows if row.note)
    marked = f"Few samples carry {printable('; '.join(names))}: the report says which."
    return "\n".join([_aligned(head, lines), *(textwrap.wrap(marked, width) if names else ())])


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


def _range(rows: Sequence[Row], measure: str) -> tuple[float, float]:
    values = np.concatenate([row.values for row in rows if row.key.measure == measure])
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _sections(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = row.scale.group if row.key.layer is None else printable(row.key.title)
        found.setdefault(title, []).append(row)
    return found


def _aligned(head: list[str], lines: Sequence[list[str] | str]) -> str:
    """The head, a rule, and the lines: names to the left of their columns, the numbers to the right."""
    table = [head, *(line for line in lines if not isinstance(line, str))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numbers = range(head.index("first"), len(head) - 1)

    def line(cells: Sequence[str]) -> str:
        sized = enumerate(zip(cells, widths, strict=True))
        return " ".join(cell.rjust(w) if i in numbers else cell.ljust(w) for i, (cell, w) in sized).rstrip()

    rule = "─" * max(len(line(cells)) for cells in table)
    return "\n".join([line(head), rule, *(cells if isinstance(cells, str) else line(cells) for cells in lines)])


def _trend(row: Row) -> str:
    if math.isnan(row.trend):
        return "-"
    change = row.trend * row.span
    unit = 1.0 if row.scale.bounded else abs(row.last)
    arrow = "→" if abs(change) < _STILL * unit else ("↗" if change > 0 else "↘")
    if not row.scale.bounded:
        return f"{arrow} {'-' if row.trend < 0 else '+'}{_short(abs(row.trend))}"
    return f"{arrow} {row.trend:+.4f}"


def _number(value: float, scale: Scale) -> str:
    if math.isnan(value):
        return "NaN"
    if not scale.bounded:
        return _short(value)
    return f"{round(value, 3) + 0.0:.3f}"  # adding zero takes the sign from -0.000


def _with_error(value: float, error: float, scale: Scale) -> str:
    """With no more digits than the error leaves."""
    if math.isnan(error):
        return _number(value, scale)
    if not scale.bounded:
        return f"{_short(value)} ± {_short(float(f'{error:.1g}'))}"
    digits = 2 if error >= 0.0095 else 3
    return f"{round(value, digits) + 0.0:.{digits}f} ± {error:.{digits}f}"


def _short(value: float) -> str:
    """A length of any size in at most six letters and a sign."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
