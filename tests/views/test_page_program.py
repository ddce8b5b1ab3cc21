"""The report's program, run by a JavaScript engine on a document of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from py_mini_racer import MiniRacer

from lightning_sim.measures import MEASURES, Scale
from lightning_sim.record import Key, Measurement, SimilarityHistory, SimilarityMatrix
from lightning_sim.views import report_page

from ..loggers.runs import HOSTILE
from .test_report import Page

DOCUMENT = Path(__file__).with_name("document.js").read_text()
LAYERS = ("conv", *HOSTILE)


def history(scales: dict[str, Scale], measure: str = "my_measure") -> SimilarityHistory:
    """A measure that no view knows, of layers and under a condition; two outputs; a matrix."""
    known = {name: scale.to_state() for name, scale in scales.items()}
    found = SimilarityHistory({"run": "a", "layers": {layer: layer for layer in LAYERS}, "scales": known})
    for epoch in range(5):
        values = {Key(measure, "features", layer): 2.0 * epoch + i for i, layer in enumerate(LAYERS)}
        values |= {Key("jsd"): 0.1 * epoch, Key("agreement", condition="fog"): 0.5}
        values[Key("my_length")] = 12345.678 * epoch
        cells = np.full((len(LAYERS), len(LAYERS)), 2.0) + np.eye(len(LAYERS))
        matrix = SimilarityMatrix(measure, "features", LAYERS, LAYERS, cells)
        found.append(Measurement(epoch, 10 * epoch, values, (matrix,)))
    return found


@pytest.fixture
def run() -> Any:
    def run(*histories: SimilarityHistory) -> Any:
        text = report_page({f"run {index}": one for index, one in enumerate(histories)})
        program = next(part for part in text.split("<script>")[1:]).split("</script>")[0]
        engine = MiniRacer()
        engine.eval(DOCUMENT)
        engine.eval(f"known_.data.textContent = {json.dumps(json.dumps(Page(text).data))}")
        engine.eval(program)
        return lambda expression: json.loads(engine.eval(f"JSON.stringify({expression})"))

    return run


SCALES = {
    "my_measure": Scale(low=0, high=10, same=0),
    "jsd": MEASURES["jsd"].scale,
    "agreement": MEASURES["agreement"].scale,
    "my_length": Scale(low=0, unit="m", group="parameters"),
}


def test_every_section_is_drawn_and_names_are_text(run: Any) -> None:
    page = run(history(SCALES), history(SCALES))
    assert page("texts_(known_.page, 'h2')") == [
        "Layers over training",
        "Outputs and parameters over training",
        "Layer by layer",
        "Similarity against outputs",
        "Summary",
        "Configuration",
    ]
    assert page("texts_(section_('Layers over training'), 'h3')") == list(LAYERS)
    assert page("known_.page.all.some((node) => node.tag === 'script' || /alert/.test(node.tag))") is False


def test_a_measure_is_shown_by_its_scale(run: Any) -> None:
    page = run(history(SCALES))
    outputs = page("section_('Outputs and parameters over training').childNodes[1].textContent")
    assert outputs == "The reference itself reads jsd 0 nats, agreement/fog 1."
    shown = page("texts_(section_('Summary'), 'td')")
    assert {"my_measure, features", "outputs", "parameters", "49400"} <= set(shown)  # three digits of any length
    # The colours of the matrix span the range of the measure, 0 to 10, and not that of its values, 2 to 3.
    ends = page("texts_(section_('Layer by layer').all.find((n) => n.tag === 'svg'), 'text')")
    assert {"10", "0"} <= set(ends)


def test_without_a_scale_the_values_span_the_colours(run: Any) -> None:
    page = run(history({}))
    ends = page("texts_(section_('Layer by layer').all.find((n) => n.tag === 'svg'), 'text')")
    assert {"3", "2"} <= set(ends)


def test_hiding_a_run_and_choosing_a_panel_per_run_redraw(run: Any) -> None:
    page = run(history(SCALES), history(SCALES))
    page("(find_('button', 'a panel per run').listeners.click(), 0)")
    assert page("texts_(section_('Layers over training'), 'h3')") == ["run 0", "run 1"]
    page("(known_.page.all.find((n) => n.attributes.class === 'run').listeners.click(), 0)")
    assert page("texts_(section_('Layers over training'), 'h3')") == ["run 1"]


def test_a_number_that_fell_between_the_drawn_measurements_is_drawn_as_missing(run: Any) -> None:
    measurements = [Measurement(e, e, {"jsd": 0.5, **({"agreement": 0.25} if e == 1 else {})}) for e in range(1000)]
    page = run(SimilarityHistory({"scales": {"jsd": SCALES["jsd"].to_state()}}, measurements))
    assert set(page("JSON.parse(known_.data.textContent).runs[0].values.agreement")) == {None}
    assert page("texts_(known_.page, 'h2')") == ["Outputs over training", "Summary"]


def test_the_scale_is_that_of_the_run_that_knows_it(run: Any) -> None:
    page = run(history({}), history({"my_length": SCALES["my_length"]}))
    outputs = page("texts_(known_.page, 'h2')")[1]
    assert outputs == "Outputs and parameters over training"


def test_outputs_of_a_group_stand_under_one_title_with_their_conditions(run: Any) -> None:
    page = run(history({**SCALES, "agreement": Scale(low=0, high=1, group="parameters")}))
    first = "section_('Summary').all.filter((n) => n.tag === 'tr').map((n) => n.childNodes[0].textContent)"
    assert page(first)[-5:] == ["outputs", "jsd", "parameters", "agreement/fog", "my_length"]


def test_the_slider_tells_measurements_of_one_epoch_apart(run: Any) -> None:
    started = history(SCALES)
    first = started.measurements[0]
    started.measurements.insert(1, Measurement(0, 9, first.by_key, first.matrices))
    moment = "known_.page.all.find((n) => n.attributes.class === 'moment').textContent"
    slider = "known_.page.all.find((n) => n.tag === 'input' && n.attributes.type === 'range')"
    page = run(started)
    assert page(moment) == "epoch 4"
    page(f"({slider}.value = 1, {slider}.listeners.input(), 0)")
    assert page(moment) == "epoch 0, step 9"
