"""The page: one HTML file with its data, style and program inside, that is not allowed to load anything."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from lightning_sim.figures.labels import without_prefix
from lightning_sim.figures.moments import placed
from lightning_sim.record import Key, Measurement, Scale, SimilarityHistory
from lightning_sim.record.correlations import LEAST_POINTS, correlate, errors_of, numbers_of
from lightning_sim.views.conditions import conditions_heatmap, under_conditions
from lightning_sim.views.pictures import SIMILAR
from lightning_sim.views.summary import ordered_keys, summarize

__all__ = ["report_page"]

_SCRIPTS = (
    "elements",
    "charts",
    "trajectories",
    "matrices",
    "interchange",
    "scatter",
    "tables",
)  # those after use those before
_MOST_MEASUREMENTS = 400  # more are not seen on a screen
_MOST_CELLS = 60_000  # of all matrices of a run

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<noscript>This page draws its charts with JavaScript, which is turned off.</noscript>
<main id="page"></main>
<script type="application/json" id="data">{data}</script>
<script>{program}</script>
</body>
</html>
"""


def report_page(histories: Mapping[str, SimilarityHistory]) -> str:
    """Trajectories, matrices over the epochs, similarity against divergence and configuration of runs, as HTML.

    The page needs no network: its Content-Security-Policy forbids every request and every program but its own. Names
    and metadata are in it as data, which the program shows as text. Long runs are thinned to 400 evenly spaced
    measurements, and their matrices to what fits into about half a megabyte per run; the page says so.

    Args:
        histories: The runs, by the names that they get on the page.

    Raises:
        ValueError: If there is no run.
    """
    if not histories:
        raise ValueError("`histories` must hold at least one run, got none")
    folder = files(__package__)
    style = (folder / "page.css").read_text("utf-8")
    scripts = "\n".join((folder / "script" / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    program = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    return _PAGE.format(
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {_source(program)}",
                f"style-src {_source(style)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        title=escape(f"Similarity of {', '.join(histories)}"),
        style=style,
        program=program,
        data=_embedded(_data(histories)),
    )


def _source(content: str) -> str:
    """What allows exactly this content in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in, whatever names it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(histories: Mapping[str, SimilarityHistory]) -> dict[str, Any]:
    keys = ordered_keys(histories)
    layers = list(dict.fromkeys(key.layer for key in keys if key.layer is not None))
    labels = dict(zip(layers, without_prefix(layers), strict=True))
    return {
        "similar": SIMILAR,
        "names": [
            {"name": key.name, "title": key.title, **key._asdict(), "scale": _scale(histories, key.measure)}
            | {"label": key.name if key.layer is None else labels[key.layer]}
            for key in keys
        ],
        "runs": [_run(run, history, keys) for run, history in histories.items()],
        "summary": [{"name": row.key.name, "when": row.when, **row.to_record()} for row in summarize(histories)],
        "correlations": [found for run, history in histories.items() for found in _correlations(run, history, keys)],
    }


def _scale(histories: Mapping[str, SimilarityHistory], measure: str) -> dict[str, Any]:
    """That of the first run that knows it."""
    scales = [history.scale(measure) for history in histories.values()]
    return next((scale for scale in scales if scale != Scale()), scales[0]).to_state()


def _run(run: str, history: SimilarityHistory, keys: Sequence[Key]) -> dict[str, Any]:
    moments = _evenly(placed(history.measurements), _MOST_MEASUREMENTS)
    kept, epochs, held = [m for _, m in moments], [at for at, _ in moments], set(history.keys)
    return {
        "name": run,
        "measurements": len(history),
        "epochs": epochs,
        "steps": [measurement.step for measurement in kept],
        "axis": "epoch" if len(set(epochs)) == len(epochs) else "step",
        "values": {key.name: _numbers(numbers_of(kept, key), 5) for key in keys if key in held},
        "errors": _errors(kept, keys),
        "notes": _notes(kept),
        "matrices": [*_matrices(history), *_conditions(history)],
        "configuration": dict(_flat({k: v for k, v in history.metadata.items() if k != "scales"})),
    }


def _errors(measurements: Sequence[Measurement], keys: Sequence[Key]) -> dict[str, list[float | None]]:
    """Of the values that have any."""
    held = {key for measurement in measurements for key in measurement.statistics.get("standard_error", ())}
    return {key.name: _numbers(errors_of(measurements, key), 2) for key in keys if key in held}


def _notes(measurements: Sequence[Measurement]) -> dict[str, dict[str, Any]]:
    """Which values of a name have a note, and the newest one: they are long, and differ little."""
    found: dict[str, dict[str, Any]] = {}
    for place, measurement in enumerate(measurements):
        for key, note in measurement.notes.items():
            found.setdefault(key.name, {"at": []})["at"].append(place)
            found[key.name]["text"] = note
    return found


def _matrices(history: SimilarityHistory) -> list[dict[str, Any]]:
    """Every kind of matrix with its frames over the epochs; rows and columns are those of the last one."""
    holding = [(at, measurement) for at, measurement in placed(history.measurements) if len(measurement.matrices)]
    if not holding:
        return []
    cells = sum(matrix.values.size for matrix in holding[-1][1].matrices)
    kinds: dict[Key, dict[str, Any]] = {}
    for at, measurement in reversed(_evenly(holding, max(1, _MOST_CELLS // cells))):
        for matrix in measurement.matrices:
            kind = kinds.setdefault(
                matrix.key,
                {
                    "title": matrix.key.title,
                    "scale": history.scale(matrix.measure).to_state(),
                    "rows": list(matrix.rows),
                    "columns": list(matrix.columns),
                    "labels": [without_prefix(matrix.rows), without_prefix(matrix.columns)],
                    "frames": [],
                },
            )
            if (kind["rows"], kind["columns"]) == (list(matrix.rows), list(matrix.columns)):
                frame: dict[str, Any] = {"epoch": at, "step": measurement.step}
                if (by_chance := matrix.explained_by_chance).any():
                    frame["chance"] = "".join(map(str, by_chance.astype(int).ravel()))
                kind["frames"].insert(0, frame | {"values": _numbers(matrix.values.ravel().tolist(), 3)})
    return list(kinds.values())


def _conditions(history: SimilarityHistory) -> list[dict[str, Any]]:
    """Measures of outputs under every condition at every measurement, as matrices of one frame."""
    found = []
    for measure in under_conditions(history):
        shown, last = conditions_heatmap(history, measure), history.measurements[-1]
        frame = {"epoch": last.epoch, "step": last.step, "values": _numbers(shown.values.ravel().tolist(), 3)}
        rows, columns = list(shown.rows), list(shown.columns)
        axes = {"rows": rows, "columns": columns, "labels": [rows, columns], "conditions": True}
        found.append({"title": shown.title, "scale": history.scale(measure).to_state(), **axes, "frames": [frame]})
    return found


def _correlations(run: str, history: SimilarityHistory, keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Of every layer's trajectory with every trajectory of outputs under the same condition."""
    if len(history) < LEAST_POINTS:
        return []
    held = set(history.keys)
    values = {key: numbers_of(history.measurements, key) for key in keys if key in held}
    found = []
    for key, output in itertools.product(values, values):
        if key.layer is None or output.layer is not None or key.condition != output.condition:
            continue
        pearson, spearman = (correlate(values[key], values[output], method) for method in ("pearson", "spearman"))
        numbers = [pearson.value, pearson.low, pearson.high, spearman.value, spearman.low, spearman.high]
        found.append(
            {"run": run, "name": key.name, "output": output.name, "slope": _numbers([pearson.slope], 5)[0]}
            | dict(zip(("r", "rLow", "rHigh", "rho", "rhoLow", "rhoHigh"), _numbers(numbers, 4), strict=True))
        )
    return found


def _evenly(moments: Sequence[tuple[int, Measurement]], most: int) -> list[tuple[int, Measurement]]:
    """At most so many of them, the first and the last included where there are two."""
    count = min(len(moments), most)
    indices = np.linspace(len(moments) - 1, 0, count).round().astype(int)[::-1] if count else ()
    return [moments[index] for index in indices]


def _numbers(values: Iterable[float], digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def _flat(metadata: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested metadata as lines of text; the layers, which can be many, in one."""
    for key, value in metadata.items():
        if key == "layers" and isinstance(value, Mapping):
            pairs = (str(mine) if mine == theirs else f"{mine} → {theirs}" for mine, theirs in value.items())
            yield f"{prefix}{key}", "\n".join(pairs)
        elif isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)
