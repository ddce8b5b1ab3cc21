from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from lightning_sim.record import Key, Measurement, SimilarityHistory, SimilarityMatrix, read_history
from lightning_sim.record.file import RecordWriter
from lightning_sim.record.key import parse_name
from lightning_sim.record.statistics import STATISTICS
from lightning_sim.record.table import COLUMNS

from ..loggers.runs import HOSTILE, example_history


def two_epochs() -> SimilarityHistory:
    history = SimilarityHistory({"run": "r", "layers": {"b": "their b", "a": "their a"}})
    for epoch, step in ((0, 9), (2, 29)):
        cells = np.array([[1, 2], [3, 4]]) / 8 + epoch
        matrix = SimilarityMatrix("cka", "features", ("b", "a"), ("their b", "their a"), cells)
        values = {
            "cka/features/a": cells[1, 1],
            "cka/features/b": cells[0, 0],
            "wcka/weights/a": 0.5,
            "jsd": 0.25,
        }
        history.append(Measurement(epoch, step, {**values, "seconds": 1.5}, (matrix,)))
    return history


def test_properties() -> None:
    history = two_epochs()
    assert history.measures == ["cka", "wcka", "jsd"]
    assert history.layers == ["b", "a"]  # the network's order, not that of the values
    assert history.epochs == [0, 2]
    assert (history.run, len(history)) == ("r", 2)
    assert (
        repr(history) == "SimilarityHistory(run 'r', 2 measurements, epochs 0, 2, cka, wcka, jsd, 2 layers)"
    )
    assert repr(SimilarityHistory({})) == "SimilarityHistory(nothing measured yet)"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jsd", ("jsd", None, None, "")),
        ("jsd/fog", ("jsd", None, None, "fog")),
        ("cka/features/a/b/c", ("cka", "features", "a/b/c", "")),
        ("cka/features@fog/a@b/c", ("cka", "features", "a@b/c", "fog")),
        ("cka/features/../../x", ("cka", "features", "../../x", "")),
        ("cka/features/", ("cka", "features", "", "")),
    ],
)
def test_names_say_measure_representation_layer_and_condition(name: str, parts: tuple[str | None, ...]) -> None:
    key = parse_name(name)
    assert (key, key.name) == (parts, name)


@pytest.mark.parametrize(
    "parts",
    [("a/b",), ("jsd", None, None, "a/b"), ("cka", "features", "a", "a/b"), ("cka", "x/y", "a"), ("cka", "x@y", "a")],
)
def test_keys_that_their_names_would_not_give_back_are_refused(parts: tuple[str | None, ...]) -> None:
    with pytest.raises(ValueError, match=r"key must not hold '/'.*got .*(a/b|x/y|x@y)"):
        Key(*parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [("jsd", None, None, "a@b"), ("c@d", "features", "a/b@c", "d@e"), ("c", "d", "", "")])
def test_keys_survive_checkpoints_and_records(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    key = Key(*parts)  # type: ignore[arg-type]
    measurement = Measurement(0, 1, {key: 0.5})
    RecordWriter(tmp_path, {}, [measurement]).claim()
    for read in (Measurement.from_state(measurement.to_state()), *read_history(tmp_path).measurements):
        assert read.by_key == {key: 0.5}
    assert pickle.loads(pickle.dumps(key)) == key


def test_a_checkpoint_of_an_earlier_version_loses_what_follows_from_other_values() -> None:
    derived = {"cka_jsd_pearson/features/a": 0.25, "cka_nbs_slope": 1.0, "nbs_jsd_slope/x/a": 1.0}
    state = {"epoch": 0, "step": 1, "matrices": [], "values": {"jsd": 0.5, **derived}}
    assert Measurement.from_state(state).values == {"jsd": 0.5}


def test_the_condition_stands_in_every_title() -> None:
    matrices = [SimilarityMatrix("cka", "features", ("a",), ("a",), np.ones((1, 1)), c) for c in ("fog", "")]
    assert [matrix.heatmap().title for matrix in matrices] == ["cka, features, fog", "cka, features"]
    history = SimilarityHistory({}, [Measurement(3, 1, {}, matrices)])
    assert history.plot().axes[0].get_title(loc="left") == "cka, features, fog, epoch 3"


def test_trajectories_hold_the_measurements_that_have_the_name() -> None:
    history = two_epochs()
    history.append(Measurement(3, 39, {"jsd": float("nan")}))
    of_layer, of_outputs = history.trajectory("cka", layer="a"), history.trajectory("jsd")
    assert (of_layer.epochs.tolist(), of_layer.steps.tolist(), of_layer.values.tolist()) == (
        [0, 2],
        [9, 29],
        [0.5, 2.5],
    )
    np.testing.assert_array_equal(of_outputs.values, [0.25, 0.25, np.nan])
    assert of_outputs.epochs.tolist() == [0, 2, 3]
    assert (len(of_layer), len(of_outputs)) == (2, 3)
    assert history.trajectory("wcka", layer="a", representation="weights").values.tolist() == [0.5, 0.5]


def test_matrices_by_epoch() -> None:
    history = two_epochs()
    assert history.matrix().values.tolist() == [[2.125, 2.25], [2.375, 2.5]]
    assert history.matrix("cka", epoch=0).values.tolist() == [[0.125, 0.25], [0.375, 0.5]]
    assert history.matrix().rows == ("b", "a")
    again = SimilarityMatrix("cka", "features", ("b",), ("their b",), np.array([[7.0]]))
    history.append(Measurement(2, 35, {}, (again,)))
    assert history.matrix(epoch=2) == again  # several in an epoch: the last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "cca"}, "no measure 'cca'.*it holds cka, wcka, jsd"),
        ({"measure": "cka"}, "give `layer`: cka, features was measured for b, a"),
        ({"measure": "cka", "layer": "c"}, "no layer 'c': cka, features was measured for b, a"),
        ({"measure": "wcka", "layer": "a"}, "'wcka' was measured for weights, not for 'features'"),
        ({"measure": "jsd", "layer": "a"}, "leave `layer` out, got 'a'"),
        ({"measure": "jsd", "condition": 3}, "`condition` must be a string"),
    ],
)
def test_unknown_trajectories_list_what_there_is(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_epochs().trajectory(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "nbs"}, "no matrix of nbs, features in this history; it holds cka, features at epochs 0, 2"),
        ({"epoch": 1}, "no matrix of cka, features at epoch 1 in this history; it holds cka, features at epochs 0, 2"),
        ({"representation": "gradients"}, "no matrix of cka, gradients"),
        ({"condition": "fog"}, "no matrix of cka, features, fog in this history; it holds cka, features at"),
        ({"condition": None}, "`condition` must be a string"),
    ],
)
def test_unknown_matrices_list_what_there_is(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_epochs().matrix(**arguments)
    with pytest.raises(ValueError, match="it holds no matrices"):
        SimilarityHistory({}).matrix()


def test_the_tidy_table() -> None:
    rows = two_epochs().to_records()
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [tuple(row.values())[:9] for row in rows[:5]] == [
        ("r", 0, 9, "cka", "features", "", "a", "their a", 0.5),
        ("r", 0, 9, "cka", "features", "", "b", "their b", 0.125),
        ("r", 0, 9, "wcka", "weights", "", "a", "their a", 0.5),
        ("r", 0, 9, "jsd", None, "", None, None, 0.25),
        ("r", 0, 9, "seconds", None, "", None, None, 1.5),
    ]
    assert len(rows) == 10
    frame = two_epochs().to_pandas()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 10
    assert frame.query("layer == 'a' and measure == 'cka'").value.tolist() == [0.5, 2.5]
    assert (frame.epoch.dtype.kind, frame.step.dtype.kind, frame.value.dtype.kind) == ("i", "i", "f")


def with_errors() -> SimilarityHistory:
    """Of one layer with a standard error, of another with nothing, and of the outputs with another statistic."""
    conv, other, jsd = Key("cka", "features", "conv"), Key("cka", "features", "other"), Key("jsd")
    values = {conv: 0.75, other: 0.5, jsd: math.nan}
    beside = {"standard_error": {conv: 0.125}, "z": {conv: 12.5, jsd: math.nan}}
    return SimilarityHistory({}, [Measurement(0, 0, values), Measurement(1, 5, values, (), beside)])


def test_what_stands_beside_a_value_is_in_its_row_and_trajectory() -> None:
    history = with_errors()
    rows = [(row["step"], row["layer"], row["standard_error"], row["z"]) for row in history.to_records()]
    assert rows[:2] == [(0, "conv", None, None), (0, "other", None, None)]
    assert rows[3:] == [(5, "conv", 0.125, 12.5), (5, "other", None, None), (5, None, None, None)]
    np.testing.assert_array_equal(history.trajectory("cka", layer="conv").standard_errors, [math.nan, 0.125])
    frame = history.to_pandas()
    assert {frame[name].dtype.kind for name in STATISTICS} == {"f"}
    assert frame.query("layer == 'conv' and step == 5").standard_error.tolist() == [0.125]
    assert SimilarityHistory.from_state(history.to_state()) == history
    with pytest.raises(ValueError, match=r"`statistics` are standard_error, .*; got 'error'"):
        Measurement(0, 0, {"jsd": 1}, (), {"error": {}})


def test_the_tidy_table_with_matrices_has_every_cell_once() -> None:
    rows = two_epochs().to_records(matrices=True)
    cells = {
        (row["epoch"], row["layer"], row["reference_layer"]): row["value"]
        for row in rows
        if row["measure"] == "cka"
    }
    assert len(rows) == 10 + 2 * 2
    assert cells == {
        (epoch, mine, theirs): value + epoch
        for epoch in (0, 2)
        for (mine, theirs), value in {
            ("b", "their b"): 0.125, ("b", "their a"): 0.25, ("a", "their b"): 0.375, ("a", "their a"): 0.5,
        }.items()
    }  # fmt: skip


def test_the_wide_table_has_a_row_for_each_measurement() -> None:
    history = two_epochs()
    history.append(Measurement(2, 35, {"jsd": 0.75, "cka/features/new": 0.5}))
    cka = history.to_pandas(measure="cka", wide=True)
    assert cka.index.tolist() == [(0, 9), (2, 29), (2, 35)]
    assert cka.index.names == ["epoch", "step"]
    assert list(cka.columns) == ["a", "b", "new"]
    np.testing.assert_array_equal(cka.to_numpy(), [[0.5, 0.125, np.nan], [2.5, 2.125, np.nan], [np.nan, np.nan, 0.5]])
    assert history.to_pandas(measure="jsd", wide=True).to_dict("list") == {"jsd": [0.25, 0.25, 0.75]}
    names = ["cka/features/a", "cka/features/b", "wcka/weights/a", "jsd", "seconds", "cka/features/new"]
    assert list(history.to_pandas(wide=True).columns) == names
    cells = two_epochs().to_pandas(measure="cka", matrices=True, wide=True)
    assert cells.loc[(0, 9)].to_dict() == {
        "a against their a": 0.5, "b against their b": 0.125, "b against their a": 0.25, "a against their b": 0.375,
    }  # fmt: skip
    assert history.to_pandas(measure="jsd").value.tolist() == [0.25, 0.25, 0.75]
    with pytest.raises(ValueError, match="no measure 'cca' in this history; it holds cka, wcka, jsd, seconds"):
        history.to_pandas(measure="cca")


def test_layers_can_be_given_by_an_end_that_only_one_has() -> None:
    layers = ("net.block1.conv", "net.block2.conv", "net.head", "head2")
    values = {f"cka/features/{layer}": float(i) for i, layer in enumerate(layers)}
    values |= {"wcka/weights/net.block2.conv": 9.0}
    history = SimilarityHistory({"layers": dict.fromkeys(layers, "")}, [Measurement(0, 1, {**values, "jsd": 0.0})])
    for end, whole in (("head", "net.head"), ("block2.conv", "net.block2.conv"), ("head2", "head2")):
        found = history.trajectory("cka", layer=end)
        assert found.name == f"cka/features/{whole}"
        assert found.values.tolist() == [values[f"cka/features/{whole}"]]
    assert history.trajectory("wcka", layer="conv", representation="weights").values.tolist() == [9.0]
    with pytest.raises(ValueError, match=r"'conv' may be net.block1.conv or net.block2.conv: give more of its name"):
        history.correlation("cka", "jsd", layer="conv")
    with pytest.raises(ValueError, match=r"no layer 'ead': cka, features was measured for net.block1.conv"):
        history.trajectory("cka", layer="ead")


def test_an_empty_history_gives_an_empty_table() -> None:
    assert SimilarityHistory({}).to_records() == []
    assert tuple(SimilarityHistory({}).to_pandas().columns) == COLUMNS


def test_comparing_joins_runs_and_tells_equal_names_apart(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "similarity", {"run": "stored"})
    writer.append(Measurement(0, 1, {"jsd": 0.5}))
    unnamed = SimilarityHistory({}, [Measurement(0, 1, {"jsd": 0.125})])
    with pytest.warns(DeprecationWarning, match="now SimilarityHistory.concatenate"):
        frame = SimilarityHistory.compare([two_epochs(), two_epochs(), tmp_path, unnamed])
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("run", sort=False).size().to_dict() == {"r": 10, "r (2)": 10, "stored": 1, "run": 1}
    assert frame[frame.run == "stored"].value.tolist() == [0.5]
    with pytest.warns(DeprecationWarning, match="now SimilarityHistory.concatenate"):
        renamed = SimilarityHistory.compare([SimilarityHistory({"run": run}, unnamed.measurements) for run in "aab"])
    assert renamed.run.tolist() == ["a", "a (2)", "b"]
    named = {"mine": two_epochs(), "theirs": unnamed}
    assert SimilarityHistory.concatenate(named).groupby("run", sort=False).size().to_dict() == {"mine": 10, "theirs": 1}
    assert SimilarityHistory.concatenate({}).empty


def test_values_are_float32_in_memory_as_in_the_record() -> None:
    measurement = Measurement(
        np.int64(1), torch.tensor(2), {"a": 0.1, "b": torch.tensor(0.1), "c": np.float64(1e300)}
    )
    values = measurement.values
    assert np.isnan(values.pop("c"))  # too large for float32
    assert values == {"a": float(np.float32(0.1)), "b": float(np.float32(0.1))}
    assert (type(measurement.epoch), type(measurement.step)) == (int, int)
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        Measurement(0, 0, {"a": [1.0, 2.0]})  # type: ignore[dict-item]


def test_a_matrix_keeps_its_own_values() -> None:
    values = np.zeros((1, 1), dtype=np.float32)
    matrix = SimilarityMatrix("cka", "features", ("a",), ("a",), values)
    values[0, 0] = 1
    assert matrix.values.tolist() == [[0.0]]


def test_a_matrix_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(rows, columns\) = \(1, 2\), got \(2, 1\)"):
        SimilarityMatrix("cka", "features", ("a",), ("a", "b"), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"got \(0, 0\)"):
        SimilarityMatrix("cka", "features", (), (), np.zeros((0, 0)))


def test_the_state_survives_a_checkpoint_that_is_loaded_without_running_code(tmp_path: Path) -> None:
    history = example_history(layers=HOSTILE)
    torch.save(history.to_state(), tmp_path / "state.pt")
    loaded = SimilarityHistory.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded == history
    loaded.append(history.measurements[0])
    assert loaded != history
    assert loaded.to_records(matrices=True)[0] == history.to_records(matrices=True)[0]


def test_equality_sees_every_part() -> None:
    same = {"epoch": 1, "step": 2, "values": {"a": float("nan")}}
    assert Measurement(**same) == Measurement(**same)
    for changed in ({"epoch": 2}, {"step": 3}, {"values": {"b": float("nan")}}, {"values": {"a": 0.0}}):
        assert Measurement(**same) != Measurement(**{**same, **changed})
    matrix = two_epochs().matrix()
    other = SimilarityMatrix("cka", "features", matrix.rows, matrix.columns, matrix.values + 1)
    assert Measurement(**same, matrices=(matrix,)) != Measurement(**same, matrices=(other,))
    assert Measurement(**same, matrices=(matrix,)) != Measurement(**same)


def test_the_record_is_preferred_and_another_source_can_be_asked_for(tmp_path: Path) -> None:
    for place, value in (("similarity", 0.5), (".", 0.75)):
        RecordWriter(tmp_path / place, {}).append(Measurement(4, 1, {"jsd": value}))
    (tmp_path / "metrics.csv").write_text("epoch,similarity/jsd,step\n4,0.25,1\n4,,2\n")
    assert read_history(tmp_path).trajectory("jsd").values.tolist() == [0.5]
    assert read_history(str(tmp_path / "record.jsonl")).trajectory("jsd").values.tolist() == [0.75]
    for path, source in ((tmp_path, "csv"), (tmp_path / "metrics.csv", None)):
        read = read_history(path, source=source)
        assert (read.trajectory("jsd").values.tolist(), read.epochs) == ([0.25], [4])


def test_records_of_several_monitors_are_told_apart_by_name(tmp_path: Path) -> None:
    for name, value in (("teacher", 0.5), ("[t]*", 0.75)):
        RecordWriter(tmp_path / name, {}).append(Measurement(4, 1, {"jsd": value}))
        assert read_history(tmp_path, name=name).trajectory("jsd").values.tolist() == [value]


def test_of_several_runs_one_must_be_chosen(tmp_path: Path) -> None:
    for value in (0.5, 0.75):
        RecordWriter(tmp_path / "teacher", {}).append(Measurement(4, 1, {"jsd": value}))
    RecordWriter(tmp_path / "teacher", {}).claim()  # of a run that was killed before it measured anything
    RecordWriter(tmp_path / "teacher-7", {}).append(Measurement(4, 1, {"jsd": 0.25}))  # of a monitor of this name
    both = r"several runs, give one: \S*teacher.record\.jsonl, \S*teacher-1.record\.jsonl$"
    with pytest.raises(ValueError, match=both):
        read_history(tmp_path, name="teacher")
    assert read_history(tmp_path / "teacher-1").trajectory("jsd").values.tolist() == [0.75]
    assert read_history(tmp_path, name="teacher-7").trajectory("jsd").values.tolist() == [0.25]
    shutil.rmtree(tmp_path / "teacher")
    assert read_history(tmp_path, name="teacher").trajectory("jsd").values.tolist() == [0.75]


def test_a_record_without_an_id_is_read_and_left_alone(tmp_path: Path) -> None:
    lines = [
        '{"kind":"header","schema":1,"run":"older"}',
        '{"kind":"measurement","epoch":4,"step":1,"matrices":0,"values":{"jsd":0.5}}',
    ]
    path = tmp_path / "similarity" / "record.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    assert read_history(tmp_path) == SimilarityHistory({"run": "older"}, [Measurement(4, 1, {"jsd": 0.5})])
    writer = RecordWriter(path.parent, {}, [Measurement(4, 1, {"jsd": 0.75})], "0" * 32)
    assert writer.claim() == tmp_path / "similarity-1"
    assert path.read_bytes() == before


def test_a_csv_row_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,similarity/jsd,step\n4,0.25,1\n5,0.5")
    assert read_history(tmp_path).epochs == [4]


@pytest.mark.parametrize("row", ["4,many,1", "four,0.25,1", "4,0.25,first"])
def test_a_damaged_csv_file_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"epoch,similarity/jsd,step\n{row}\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: .*(many|four|first)"):
        read_history(tmp_path)


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_history(tmp_path / "nowhere")
    run = tmp_path / "lightning_logs" / "version_3"
    run.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no run to read \(looked for similarity/record.jsonl"):
        read_history(tmp_path)
    (run / "metrics.csv").write_text("epoch,similarity/jsd,step\n0,0.25,1\n")
    with pytest.raises(FileNotFoundError, match=r"there are runs below it: .*version_3"):
        read_history(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no wandb to read"):
        read_history(run, source="wandb")
    with pytest.raises(FileNotFoundError, match=r"looked for teacher/record.jsonl"):
        read_history(run, source="record", name="teacher")
    with pytest.raises(ValueError, match="`source` must be one of record, tensorboard, csv, wandb"):
        read_history(run, source="excel")


def test_ten_thousand_measurements_of_fifty_layers(tmp_path: Path) -> None:
    names = [f"cka/features/block.{layer}" for layer in range(50)]
    lines = [json.dumps({"kind": "header", "schema": 1})]
    for epoch in range(10_000):
        values = dict.fromkeys(names, (epoch % 1000) / 1000)
        lines.append('{"kind":"matrix",' + "not parsed unless asked for}")
        measurement = {"kind": "measurement", "epoch": epoch, "step": epoch, "matrices": 1, "values": values}
        lines.append(json.dumps(measurement))
    (tmp_path / "record.jsonl").write_text("\n".join(lines) + "\n")
    history = read_history(tmp_path)
    expected = np.float32((np.arange(10_000) % 1000) / 1000)
    for layer in ("block.0", "block.49"):
        np.testing.assert_array_equal(np.float32(history.trajectory("cka", layer=layer).values), expected)


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("pandas", "pandas", lambda path: SimilarityHistory({}).to_pandas()),
        ("matplotlib", "plot", lambda path: SimilarityHistory({}).plot()),
        ("tensorboard", "tensorboard", lambda path: read_history(path, source="tensorboard")),
        ("wandb", "wandb", lambda path: read_history(path, source="wandb")),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, call: Callable[[Path], object]
) -> None:
    (tmp_path / "events.out.tfevents.1").touch()
    (tmp_path / "run-a.wandb").touch()
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'lightning-sim\[{extra}\]'$"):
        call(tmp_path)


def test_histories_are_written_and_read_without_importing_lightning(tmp_path: Path) -> None:
    RecordWriter(tmp_path, {}).append(Measurement(0, 1, {"jsd": 0.5}))
    program = """
import sys
from lightning_sim.record import read_history
names = ("lightning", "wandb", "matplotlib", "pandas", "tensorboard")
print(len(read_history(sys.argv[1])), [name for name in names if name in sys.modules])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 []\n"


def test_a_change_and_its_error() -> None:
    conv = Key("cka", "features", "conv")
    numbers = [(0, 0, 1.0, 0.0), (0, 9, 0.75, 0.03), (1, 18, 0.5, 0.04), (2, 27, 0.25, math.nan)]
    history = SimilarityHistory(
        {}, [Measurement(e, step, {conv: value}, (), {"standard_error": {conv: se}}) for e, step, value, se in numbers]
    )
    found = history.change("cka", "conv", from_epoch=0, to_epoch=1)
    assert found == pytest.approx((-0.25, 0.05), rel=1e-6)
    assert history.change("cka", "conv", to_epoch=0) == pytest.approx((-0.25, 0.03), rel=1e-6)
    assert history.change("cka", "conv").value == pytest.approx(-0.75)
    assert math.isnan(history.change("cka", "conv").standard_error)
    with pytest.raises(ValueError, match="`to_epoch` 7 was not measured; epochs are 0, 0, 1, 2"):
        history.change("cka", "conv", to_epoch=7)
