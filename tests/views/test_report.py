from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_sim import cli
from lightning_sim.measures import MEASURES
from lightning_sim.record import Key, Measurement, SimilarityHistory, SimilarityMatrix
from lightning_sim.record.file import RecordWriter
from lightning_sim.views import report_page, summarize
from lightning_sim.views.table import sparkline, summary_table
from tests.loggers.runs import HOSTILE, example_history

TWELVE = tuple(f"block.{number}" for number in range(12 - len(HOSTILE))) + HOSTILE


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


def stored(directory: Path, history: SimilarityHistory) -> str:
    writer = RecordWriter(directory / "similarity", history.metadata)
    for measurement in history.measurements:
        writer.append(measurement)
    return str(directory)


def report(*arguments: str) -> int:
    return cli.main(["report", *arguments])


def two_runs(layers: tuple[str, ...] = TWELVE, epochs: int = 30) -> dict[str, SimilarityHistory]:
    return {name: example_history(epochs, layers, seed=seed) for seed, name in enumerate(("</script>", "b & c"))}


def test_rows_hold_first_last_lowest_and_trend() -> None:
    history = SimilarityHistory({"run": "r"})
    for epoch, (cka, jsd) in enumerate([(1.0, math.nan), (0.25, 0.5), (0.5, math.nan), (math.nan, math.nan)]):
        history.append(Measurement(2 * epoch, epoch, {"jsd": jsd, "cka/features/a": cka, "seconds": 1.0}))
    cka, jsd = (row.to_record() for row in summarize({"r": history}))
    slope = np.polyfit([0, 2, 4], [1, 0.25, 0.5], 1)[0]
    assert cka == {
        "run": "r",
        "measure": "cka",
        "representation": "features",
        "condition": "",
        "layer": "a",
        "measurements": 4,
        "first": 1.0,
        "last": 0.5,
        "minimum": 0.25,
        "epoch_of_minimum": 2,
        "trend": pytest.approx(slope),
        "standard_error": None,
        "p_value": None,
        "note": None,
    }
    assert [jsd[key] for key in ("representation", "layer", "first", "minimum", "epoch_of_minimum", "trend")] == [
        None,
        None,
        0.5,
        0.5,
        2,
        None,
    ]


def test_rows_are_by_measure_then_layer_then_run() -> None:
    rows = summarize({"x": example_history(3, ("b", "a")), "y": example_history(3, ("a", "c"))})
    order = [(row.key.measure, row.key.layer, row.run) for row in rows]
    assert order[:4] == [("cka", "b", "x"), ("cka", "a", "x"), ("cka", "a", "y"), ("cka", "c", "y")]
    assert order[-2:] == [("jsd", None, "x"), ("jsd", None, "y")]
    assert len(order) == 3 * 4 + 2


def test_sparklines_follow_the_values() -> None:
    values = np.array([0.0, 0.124, 0.5, 1.0, np.nan])
    assert sparkline(values, 0, 1) == "▁▁▅█·"
    assert sparkline(values[:1], 0, 0) == "▅"
    assert sparkline(np.repeat([0.0, 1.0], 600), 0, 1) == "▁" * 12 + "█" * 12
    assert sparkline(values[:0], 0, 1) == ""


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_into_the_terminal_and_prints_names_as_they_are(width: int) -> None:
    histories = two_runs((*HOSTILE, "[bold]markup[/bold]", "\x1b[2J", "backbone.layer4.0.downsample.conv.a.b.c"))
    lines = summary_table(summarize(histories), width=width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert ("[bold]markup[/bold]" if width == 160 else "[/bold]") in text
    found = [line.split() for line in lines if line.split()[:1] == ["_hidden"]]
    for row, measure in zip(found, ("cka", "nbs", "wcka"), strict=True):
        kind = "weights" if measure == "wcka" else "features"
        values = histories["</script>"].trajectory(measure, layer="_hidden", representation=kind).values
        assert row[1:5] == ["</script>", f"{values[0]:.3f}", f"{values[-1]:.3f}", f"{values.min():.3f}"]


@pytest.mark.parametrize("width", [80, 160])
def test_last_values_have_their_errors_and_those_that_few_samples_carry_are_named(width: int) -> None:
    scales = {"cka": MEASURES["cka"].scale.to_state(), "fisher_rao_norm": MEASURES["fisher_rao_norm"].scale.to_state()}
    cka, norm = Key("cka", "features", "backbone.layer4.0.downsample"), Key("fisher_rao_norm")
    other = cka._replace(layer="\x1b[2J")
    histories = {}
    for run, error in (("from-scratch-a", 0.0123), ("from-scratch-b", 0.0071)):
        statistics = {"standard_error": {cka: error, norm: 1234.0}, "p_value": {cka: 0.01}}
        last = Measurement(1, 9, {cka: -0.1234, norm: 98765.0, other: 0.5}, (), statistics, {other: "stands on few"})
        histories[run] = SimilarityHistory({"scales": scales}, [Measurement(0, 0, {cka: -0.125, norm: 1.0}), last])
    rows = summarize(histories)
    lines = summary_table(rows, width=width).splitlines()
    assert max(map(len, lines)) <= width
    shown = [line for line in lines if "±" in line]
    assert [" ± " in line for line in shown] == [True] * 4
    assert ["-0.12 ± 0.01" in shown[0], "-0.123 ± 0.007" in shown[1], "98765 ± 1000" in shown[2]] == [True] * 3
    assert " ".join(lines[-2:]).endswith("Few samples carry cka, features of �[2J: the report says which.")
    record = rows[0].to_record()
    assert (record["standard_error"], record["p_value"]) == (pytest.approx(0.0123), pytest.approx(0.01))
    assert next(row for row in rows if row.key == other).to_record()["note"] == "stands on few"
    assert "±" not in summary_table(summarize(two_runs()), width=width)


@pytest.mark.parametrize("width", [80, 160])
def test_lengths_of_any_size_are_shown_with_a_scale_of_their_own(width: int) -> None:
    rising = {"cka/features/a": 0.5, "mean_embedding/gradients/a": 1.23456e-5, "fisher_rao_norm": 98765.0, "jsd": 0.25}
    scales = {name: MEASURES[name].scale.to_state() for name in ("cka", "mean_embedding", "fisher_rao_norm", "jsd")}
    measurements = [Measurement(e, e, {k: v * (e + 1) for k, v in rising.items()}) for e in range(2)]
    history = SimilarityHistory({"scales": scales}, measurements)
    rows = summarize({"one": history, "two": history})
    lines = summary_table(rows, width=width).splitlines()
    norm, jsd = (
        next(line.split()[1:] for line in lines if line.split()[:1] == [name]) for name in ("fisher_rao_norm", "jsd")
    )
    assert norm == ["one", "98765", "2.0e5", "98765", "0", "↗", "+98765", "▁█"]
    assert jsd == ["one", "0.250", "0.500", "0.250", "0", "↗", "+0.2500", "▁█"]
    small = lines[next(i for i, line in enumerate(lines) if "mean_embedding, gradients" in line) + 1]
    assert small.split()[2:5] == ["1.2e-5", "2.5e-5", "1.2e-5"]
    titles = [line.strip() for line in lines if line.strip() in ("outputs", "parameters")]
    assert sorted(titles) == ["outputs", "parameters"]


def test_all_outputs_of_a_group_stand_under_one_title() -> None:
    scales = {name: {"low": 0, "high": 1, "group": group} for name, group in (("a", "x"), ("b", "y"), ("c", "x"))}
    values = {Key("a"): 0.5, Key("a", condition="fog"): 0.5, Key("b"): 0.5, Key("c"): 0.5}
    history = SimilarityHistory({"scales": scales}, [Measurement(0, 0, values)])
    lines = summary_table(summarize({"r": history})).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["x", "a", "a/fog", "c", "y", "b"]


@pytest.mark.parametrize(("epochs", "arrow"), [([0, 1], "→"), ([0, 100], "↗")])
def test_an_arrow_shows_what_changed_over_the_epochs(epochs: list[int], arrow: str) -> None:
    scales = {"jsd": {"low": 0, "high": 1}}
    measurements = [Measurement(e, e, {"jsd": 0.5 + 0.0009 * e}) for e in epochs]
    (row,) = summarize({"r": SimilarityHistory({"scales": scales}, measurements)})
    assert summary_table([row]).splitlines()[-1].split()[-3:-1] == [arrow, "+0.0009"]


def test_lengths_near_a_power_of_ten_and_below_zero() -> None:
    lengths = (-1500.0, 999.7, -0.5)
    measurements = [Measurement(e, e, {"mine": value}) for e, value in enumerate(lengths)]
    for value, text in zip(lengths, ("-1500", "1000", "-0.5"), strict=True):
        history = SimilarityHistory({}, [m for m in measurements if m.values["mine"] == np.float32(value)])
        (row,) = summarize({"r": history})
        assert summary_table([row]).splitlines()[-1].split()[1:4] == [text] * 3


def test_the_page_is_one_file_that_may_not_load_anything() -> None:
    text = report_page(two_runs())
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    assert [tag for tag, _ in page.elements].count("script") == 2
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    sources = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert sources["default-src"] == "'none'"
    for directive, content in (("script-src", page.texts["script"][1]), ("style-src", page.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert sources[directive] == f"'sha256-{digest}'"
    assert set(sources) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    addresses = set(re.findall(r"https?://[^\"'\s]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"@import|url\(|innerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(", text)


def test_hostile_names_are_data_and_nothing_else() -> None:
    histories = two_runs()
    histories["b & c"].metadata["note"] = "</script><img src=x onerror=alert(1)>"
    text = report_page(histories)
    page = Page(text)
    assert "<script>alert" not in text
    assert "img" not in [tag for tag, _ in page.elements]
    assert [run["name"] for run in page.data["runs"]] == ["</script>", "b & c"]
    assert page.data["runs"][1]["configuration"]["note"] == "</script><img src=x onerror=alert(1)>"
    assert {entry["layer"] for entry in page.data["names"]} == {*TWELVE, None}
    assert page.texts["title"] == ["Similarity of </script>, b & c"]


def test_the_numbers_of_the_page_are_those_of_the_histories() -> None:
    histories = two_runs(("conv", "fc"), epochs=6)
    data = Page(report_page(histories)).data
    for run, history in zip(data["runs"], histories.values(), strict=True):
        assert run["epochs"] == history.epochs
        for name in history.names:
            expected = [m.values[name] for m in history.measurements]
            got = [math.nan if value is None else value for value in run["values"][name]]
            np.testing.assert_allclose(got, expected, rtol=1e-4)
        (matrix,) = run["matrices"]
        assert matrix["columns"] == ["their conv", "their fc"]
        for frame in matrix["frames"]:
            shown = history.matrix("cka", epoch=frame["epoch"]).values.ravel()
            np.testing.assert_allclose(frame["values"], shown, rtol=1e-2)
    assert len(data["runs"][0]["matrices"][0]["frames"]) == 6
    correlation = next(
        c for c in data["correlations"] if (c["run"], c["name"], c["output"]) == ("b & c", "nbs/features/fc", "jsd")
    )
    expected = histories["b & c"].correlation("nbs", "jsd", layer="fc")
    got = [correlation[key] for key in ("r", "rLow", "rHigh", "slope")]
    assert got == pytest.approx([expected.value, expected.low, expected.high, expected.slope], rel=1e-3)
    assert data["runs"][0]["configuration"] == {"run": "example", "layers": "conv → their conv\nfc → their fc"}


def test_long_runs_are_thinned_to_a_page_of_bounded_size() -> None:
    layers = tuple(f"layer.{number}" for number in range(50))
    values = {f"{measure}/features/{layer}": 0.123456 for measure in ("cka", "nbs") for layer in layers}
    cells = np.random.default_rng(0).uniform(size=(50, 50))
    matrix = SimilarityMatrix("cka", "features", layers, layers, cells)
    measurements = [
        Measurement(e, e, {**values, "jsd": e / 1000}, (matrix,) if e % 10 == 0 else ()) for e in range(1000)
    ]
    text = report_page({"long": SimilarityHistory({}, measurements)})
    (run,) = Page(text).data["runs"]
    assert len(text) < 2_000_000
    assert (len(run["epochs"]), run["epochs"][0], run["epochs"][-1], run["measurements"]) == (400, 0, 999, 1000)
    frames = [frame["epoch"] for frame in run["matrices"][0]["frames"]]
    assert (len(frames), frames[0], frames[-1]) == (24, 0, 990)


def test_errors_and_chance_add_little_to_a_long_page() -> None:
    layers = tuple(f"layer.{number}" for number in range(50))
    keys = [Key(measure, "features", layer) for measure in ("cka", "nbs") for layer in layers]
    random = np.random.default_rng(0)
    sizes = []
    for known in (False, True):
        measurements = []
        for epoch in range(400):
            values = random.uniform(size=(50, 50))
            chance = 0.1 if known else None
            cells = SimilarityMatrix("cka", "features", layers, layers, values, chance_deviations=chance)
            errors = dict(zip(keys, random.uniform(0, 0.05, len(keys)), strict=True))
            statistics = {"standard_error": errors} if known else {}
            notes = dict.fromkeys(keys, "stands on few samples " * 8) if known else {}
            values = dict(zip(keys, random.uniform(size=len(keys)), strict=True))
            matrices = (cells,) if epoch % 20 == 0 else ()
            measurements.append(Measurement(epoch, epoch, values, matrices, statistics, notes))
        sizes.append(len(report_page({"long": SimilarityHistory({}, measurements)})))
    assert sizes[1] < 1.9 * sizes[0]  # of every value error and note
    assert sizes[1] < 2_000_000


@pytest.mark.parametrize("history", [SimilarityHistory({}), SimilarityHistory({}, [Measurement(0, 0, {"jsd": 1.0})])])
def test_histories_without_much_in_them_are_reported(history: SimilarityHistory) -> None:
    assert len(Page(report_page({"a": history})).data["runs"]) == 1
    assert len(summary_table(summarize({"a": history})).splitlines()) == 2 + 2 * len(history)  # head and rule
    with pytest.raises(ValueError, match="at least one run"):
        report_page({})


def test_formats_for_scripts_hold_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [stored(tmp_path / name, example_history(3, HOSTILE, seed=i)) for i, name in enumerate("ab")]
    assert report(*runs, "--format", "json") == 0
    from_json = json.loads(capsys.readouterr().out)
    assert report(*runs, "--format", "csv") == 0
    from_csv = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert len(from_json) == 2 * (3 * len(HOSTILE) + 1)
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in from_json]
    assert from_csv == as_text
    assert {row["run"] for row in from_json} == {"a", "b"}  # both are called "example": told apart by path


@pytest.mark.parametrize(
    ("names", "paths", "shown"),
    [
        (("logs/version_0", "logs/version_1"), ("a", "b"), ["version_0", "version_1"]),
        (("adam/version_0", "sgd/version_0"), ("a", "b"), ["adam", "sgd"]),
        (("one", "one"), ("adam/logs/0", "sgd/logs/0"), ["adam", "sgd"]),
        (("logs/version_0",), ("a",), ["logs/version_0"]),
    ],
)
def test_runs_are_named_after_what_tells_them_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], paths: tuple[str, ...], shown: list[str]
) -> None:
    runs = []
    for name, path in zip(names, paths, strict=True):
        history = example_history(2)
        history.metadata["run"] = name
        runs.append(stored(tmp_path / path, history))
    assert report(*runs, "--format", "json") == 0
    assert list(dict.fromkeys(row["run"] for row in json.loads(capsys.readouterr().out))) == shown


def test_the_page_is_written_and_the_table_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = stored(tmp_path / "run", example_history(4)), tmp_path / "report.html"
    assert report(run, "--out", str(out)) == 0
    printed = capsys.readouterr()
    assert "cka, features" in printed.out
    assert printed.err == f"Wrote {out}\n"
    assert Page(out.read_text("utf-8")).data["runs"][0]["name"] == "example"


def test_what_cannot_be_read_or_written_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored(tmp_path / "run", example_history(2))
    assert report(str(tmp_path / "nothing")) == 1
    assert capsys.readouterr().err == f"lightning-sim: {tmp_path / 'nothing'} does not exist\n"
    assert report(run, "--out", str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("lightning-sim: ")


def test_the_start_of_a_training_is_not_the_end_of_its_first_epoch() -> None:
    """CKA falls by 0.1 in every epoch of ten steps."""
    moments = [(0, 0), (0, 9), (1, 19), (2, 29)]
    values = [{"cka/features/a": value} for value in (1, 0.9, 0.8, 0.7)]
    history = SimilarityHistory({}, [Measurement(*m, v) for m, v in zip(moments, values, strict=True)])
    (row,) = summarize({"r": history})
    assert row.trend == pytest.approx(-0.1, abs=1e-6)
    assert row.span == 3
    rising = [Measurement(*m, {"jsd": value}) for m, value in zip(moments, (0, 0.2, 0.3, 0.4), strict=True)]
    (row,) = summarize({"r": SimilarityHistory({}, rising)})
    assert (row.epoch_of_minimum, row.when) == (0, "start")
    assert summary_table([row]).splitlines()[-1].split()[1:5] == ["0", "0.4", "0", "start"]
    assert Page(report_page({"r": history})).data["runs"][0]["epochs"] == [-1, 0, 1, 2]


def test_nothing_of_the_page_is_wider_than_a_telephone() -> None:
    (style,) = Page(report_page({"a": example_history(2)})).texts["style"]
    widths = re.findall(r"(?:minmax\(|(?<!max-)(?:min-)?width: )(\d+)px", style)
    assert len(widths) > 3
    assert max(map(int, widths)) <= 300
