"""The report's program, run by a JavaScript engine on a document of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from py_mini_racer import MiniRacer

from lightning_sim.measures import MEASURES, Scale, Stitching
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
    assert outputs == "The reference itself reads jsd 0 nats, agreement 1."
    shown = page("texts_(section_('Summary'), 'td')")
    assert {"my_measure, features", "outputs", "parameters", "49400"} <= set(shown)  # three digits of any length
    # The colours of the matrix span the range of the measure, 0 to 10, and not that of its values, 2 to 3.
    ends = page("texts_(section_('Layer by layer').all.find((n) => n.tag === 'svg'), 'text')")
    assert {"10", "0"} <= set(ends)


def test_outputs_are_shown_under_the_condition_that_is_chosen(run: Any) -> None:
    page = run(history(SCALES))
    shown = "texts_(section_('Outputs and parameters over training'), 'h3')"
    assert page(shown) == ["jsd", "my_length"]
    page("(find_('button', 'fog').listeners.click(), 0)")
    assert page(shown) == ["agreement"]
    page = run(SimilarityHistory({}, [Measurement(0, 0, {"jsd": 0.5})]))
    assert page("texts_(known_.page, 'button')") == ["run 0"]  # nothing to choose


def test_conditions_over_epochs_are_drawn_with_all_that_follows(run: Any) -> None:
    values = {Key("agreement"): 0.5, Key("agreement", condition="fog"): 0.25}
    page = run(SimilarityHistory({}, [Measurement(0, 0, values), Measurement(0, 9, values)]))
    assert page("texts_(known_.page, 'h2')") == ["Outputs over training", "Under every condition", "Summary"]
    written = page("texts_(section_('Under every condition').all.find((n) => n.tag === 'svg'), 'text')")
    assert written[:4] == ["clean", "fog", "start", "0"]
    assert {"0.50", "0.25"} <= set(written)


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


def with_statistics(errors: tuple[float | None, ...] = (0.02, 0.004, None, 0.03)) -> SimilarityHistory:
    """CKA of two layers, a value of the second carried by few samples; chance explains cells of the matrices."""
    keys = [Key("cka", "features", layer) for layer in ("conv", "m<b>")]
    found = SimilarityHistory({"scales": {"cka": MEASURES["cka"].scale.to_state()}})
    for epoch, error in enumerate(errors):
        p_values = {"p_value": {keys[0]: 4e-7, keys[1]: 0.25}}
        statistics = {} if error is None else {"standard_error": {keys[0]: error}, **p_values}
        notes = {keys[1]: f"stands on few samples, {epoch}"} if epoch in (1, 3) else {}
        cells = np.array([[0.9, 0.01], [0.5, 0.01 if epoch == 3 else 0.1]])
        matrix = SimilarityMatrix("cka", "features", ("conv", "m<b>"), ("a", "b"), cells, chance_deviations=0.01)
        values = {keys[0]: 0.8 - epoch / 100, keys[1]: 0.5}
        found.append(Measurement(epoch, epoch, values, (matrix,), statistics, notes))
    return found


def test_bands_follow_the_errors_and_are_left_out_without(run: Any) -> None:
    page = run(with_statistics())
    section = "section_('Layers over training')"
    charts = f"{section}.all.filter((n) => n.attributes.class === 'panel').map((n) => n.all)"
    bands = page(f"{charts}.map((all) => all.filter((n) => n.attributes.class === 'band').map((n) => n.attributes.d))")
    assert [len(of_chart) for of_chart in bands] == [1, 0]
    first, second = bands[0][0].split("Z")[:2]
    assert (first.count("L"), second.count("L")) == (3, 1)  # two measurements, and one by itself
    x, upper = map(float, second[1:].split("L")[0].split())
    _, lower = map(float, second.split("L")[1].split())
    line = page(f"{charts}[0].find((n) => n.tag === 'path' && n.attributes.fill === 'none').attributes.d")
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    per_unit = (points[3][1] - points[0][1]) / 0.03
    assert x == points[3][0]
    assert lower - upper == pytest.approx(2 * 1.96 * 0.03 * per_unit, abs=0.2)
    assert "Bands: 1.96 standard errors" in page(f"{section}.childNodes[1].textContent")
    assert page(f"texts_({section}, 'span')").count("0.77 ± 0.03") == 1
    without = run(history(SCALES))
    assert without("known_.page.all.filter((n) => ['band', 'ring', 'sign'].includes(n.attributes.class)).length") == 0
    assert "Bands" not in without("known_.page.textContent")


def test_values_that_few_samples_carry_are_marked_with_the_note(run: Any) -> None:
    page = run(with_statistics())
    rings = "section_('Layers over training').all.filter((n) => n.attributes.class === 'ring')"
    assert page(f"{rings}.map((n) => n.textContent)") == ["epoch 3: stands on few samples, 3"] * 2
    assert page(f"new Set({rings}.map((n) => n.attributes.cx)).size") == 2
    signs = "section_('Summary').all.filter((n) => n.attributes.class === 'sign')"
    rows = page(f"{signs}.map((n) => [n.attributes.title, n.parentElement.textContent])")
    assert rows == [["stands on few samples, 3", "m<b> ⚠"]]


def test_the_summary_has_errors_and_no_p_that_cannot_be_trusted(run: Any) -> None:
    rows = run(with_statistics())("section_('Summary').all.filter((n) => n.tag === 'tr').map((n) => texts_(n, 'td'))")
    conv, other = (next(row for row in rows if row and row[0].startswith(name)) for name in ("conv", "m<b>"))
    assert (conv[3], conv[7]) == ("0.77 ± 0.03", "< 0.001")
    assert (other[3], other[7]) == ("0.500", "0.250")


def test_cells_that_chance_explains_are_hatched(run: Any) -> None:
    page = run(with_statistics())
    section = "section_('Layer by layer')"
    hatches = f"{section}.all.find((n) => n.attributes.class === 'hatches').attributes.d.match(/M[^M]*/g)"
    assert page(f"{hatches}.length") == 6  # three lines each
    page(f"({SLIDER}.value = 0, {SLIDER}.listeners.input(), 0)")
    assert page(f"{hatches}.length") == 3
    cell = page(f"{section}.all.filter((n) => n.tag === 'rect')[1].attributes")
    x, y = map(float, page(hatches)[1][1:].split("l")[0].split())
    assert (x, y - float(cell["y"])) == (float(cell["x"]), pytest.approx(float(cell["height"])))
    assert "Hatched" in page(f"{section}.childNodes[1].textContent")
    assert "Hatched" not in run(history(SCALES))("known_.page.textContent")


SLIDER = "known_.page.all.find((n) => n.tag === 'input' && n.attributes.type === 'range')"
MOMENT = "known_.page.all.find((n) => n.attributes.class === 'moment').textContent"


def at(moments: list[tuple[int, int]]) -> SimilarityHistory:
    """The measurements of `history`, made at other epochs and steps."""
    whole = history(SCALES)
    made = [Measurement(*moment, m.by_key, m.matrices) for moment, m in zip(moments, whole.measurements, strict=False)]
    return SimilarityHistory(whole.metadata, made)


@pytest.mark.parametrize(
    ("moments", "title", "ticks", "shown"),
    [
        (
            [(0, 0), (0, 9), (1, 19)],
            "epoch (start: before training)",
            {"start", "0", "1"},
            ["start", "epoch 0", "epoch 1"],
        ),
        ([(0, 9), (1, 19), (2, 29)], "epoch", {"0", "1", "2"}, ["epoch 0", "epoch 1", "epoch 2"]),
        (
            [(0, 0), (0, 5), (0, 9), (1, 15)],
            "step",
            {"0", "5", "10", "15"},
            ["start", "epoch 0, step 5", "epoch 0, step 9", "epoch 1"],
        ),
    ],
)
def test_axes_slider_and_titles_say_when_and_tell_the_start_from_the_first_epoch(
    run: Any, moments: list[tuple[int, int]], title: str, ticks: set[str], shown: list[str]
) -> None:
    page = run(at(moments))
    first = page("texts_(section_('Layers over training').all.find((n) => n.tag === 'svg'), 'text')")
    assert {title, "my_measure, features"} | ticks <= set(first)
    assert not {"-1", "0.5"} & set(first)
    for value, text in enumerate(shown):
        page(f"({SLIDER}.value = {value}, {SLIDER}.listeners.input(), 0)")
        assert page(MOMENT) == text
        heading = "texts_(section_('Layer by layer'), 'h3')[0]"
        assert page(heading).split(", step")[0] == f"run 0, my_measure, features, {text}".split(", step")[0]


def nested(values: dict[str, tuple[float, ...]]) -> SimilarityHistory:
    """CKA, stitching and its control of layers with long names, before and after the one epoch of ten steps."""
    measures = ("cka", "stitching", "stitching_untrained")
    scales = {name: scale.to_state() for name, scale in Stitching().scales().items()} | {"cka": {"low": 0, "high": 1}}
    end = {Key(m, "features", name): x for name, xs in values.items() for m, x in zip(measures, xs, strict=True)}
    start = dict.fromkeys(end, 1.0)
    return SimilarityHistory({"scales": scales}, [Measurement(0, 0, start), Measurement(0, 9, end)])


def test_layers_that_are_similar_and_not_interchangeable_are_marked(run: Any) -> None:
    values = {"m.encoder.0": (0.95, 0.3, 0.1), "m.encoder.1": (0.9, 0.97, 0.2), "m.encoder.2": (0.4, 0.2, 0.2)}
    page = run(nested(values))
    section = "section_('Similar, and interchangeable?')"
    rows = page(
        f"{section}.all.filter((n) => n.tag === 'tr').map((n) => [n.attributes.class, texts_(n, 'td').join(' ')])"
    )
    assert rows[1:] == [
        ["differs", "encoder.0  0.950 0.300 0.100"],
        ["", "encoder.1  0.900 0.970 0.200"],
        ["", "encoder.2  0.400 0.200 0.200"],
    ]
    chart = f"{section}.all.find((n) => n.tag === 'svg')"
    assert page(f"{chart}.all.filter((n) => n.tag === 'circle').length") == 3
    assert page(f"{chart}.all.filter((n) => n.attributes.class === 'name').map((n) => n.textContent)") == ["encoder.0"]
    ground, mark = (page(f"{chart}.all.find((n) => n.tag === '{tag}').attributes") for tag in ("rect", "circle"))
    for low, size, middle in (("x", "width", "cx"), ("y", "height", "cy")):
        assert float(ground[low]) < float(mark[middle]) < float(ground[low]) + float(ground[size])
    assert "Similar, and interchangeable?" not in run(history(SCALES))("texts_(known_.page, 'h2')")


def test_names_are_shown_without_what_all_begin_with_and_said_in_full_on_pointing(run: Any) -> None:
    page = run(nested({f"m.encoder.{number}": (1.0, 1.0, 1.0) for number in range(2)}))
    heads = "section_('Layers over training').all.filter((n) => n.tag === 'h3')"
    assert page(f"{heads}.map((n) => [n.textContent, n.attributes.title])") == [
        ["encoder.0", "m.encoder.0"],
        ["encoder.1", "m.encoder.1"],
    ]


def test_a_long_configuration_is_folded_and_many_measures_are_a_menu(run: Any) -> None:
    folded = "known_.page.all.find((n) => n.tag === 'details')"
    long = history(SCALES)
    long.metadata["settings"] = {f"setting {number}": number for number in range(30)}
    assert page_of(run(history(SCALES)), folded) == [{"open": ""}, "2 settings"]
    assert page_of(run(long), folded) == [{}, "32 settings"]
    measures = [f"measure {number}" for number in range(8)]
    many = SimilarityHistory({}, [Measurement(0, 9, {Key(m, "features", "a"): 0.5 for m in measures})])
    page = run(many)
    menu = "section_('Layers over training').all.find((n) => n.tag === 'select')"
    assert page(f"texts_({menu}, 'option')") == [f"{measure}, features" for measure in measures]


def page_of(page: Any, folded: str) -> Any:
    return page(f"[{folded}.attributes, {folded}.childNodes[0].textContent]")
