from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sim.record import Key, Measurement, SimilarityHistory, SimilarityMatrix, places, read_history
from lightning_sim.record.file import RecordWriter
from lightning_sim.record.file import read_record as read_content
from tests.processes import Process

from ..loggers.runs import HOSTILE, example_history, files_below


def read_record(path: Path) -> SimilarityHistory:
    return SimilarityHistory(*read_content(path))


def written(directory: Path, history: SimilarityHistory) -> Path:
    writer = RecordWriter(directory, history.metadata)
    for measurement in history.measurements:
        writer.append(measurement)
    writer.close()
    return writer.path


def id_of(path: Path) -> str:
    found: str = json.loads(path.read_bytes().splitlines()[0])["run_id"]
    return found


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    history = example_history(layers=HOSTILE)
    assert read_record(written(tmp_path / "similarity", history)) == history


def test_lines_are_plain_json_of_the_documented_form(tmp_path: Path) -> None:
    history = SimilarityHistory({"run": "r", "layers": {"conv": "conv"}})
    matrix = SimilarityMatrix("cka", "features", ("conv",), ("conv", "fc"), np.array([[0.1, np.nan]]))
    history.append(Measurement(2, 30, {"cka/features/conv": 0.1, "jsd": float("inf")}, (matrix,)))
    lines = [json.loads(line) for line in written(tmp_path / "teacher", history).read_bytes().splitlines()]
    run_id = lines[0].pop("run_id")
    assert len(run_id) == 32
    assert lines == [
        {"kind": "header", "schema": 2, "monitor": "teacher", "run": "r", "layers": {"conv": "conv"}},
        {"kind": "keys", "keys": [["cka", "features", "conv", ""], ["jsd", None, None, ""]]},
        {
            "kind": "matrix",
            "epoch": 2,
            "step": 30,
            "measure": "cka",
            "representation": "features",
            "condition": "",
            "rows": ["conv"],
            "columns": ["conv", "fc"],
            "values": [[0.1, None]],
        },
        {
            "kind": "measurement",
            "epoch": 2,
            "step": 30,
            "seconds": None,
            "matrices": 1,
            "values": [0.1, None],
        },
    ]


def test_keys_are_written_where_they_change(tmp_path: Path) -> None:
    history = SimilarityHistory({})
    for epoch, names in enumerate((["jsd"], ["jsd"], ["jsd", "agreement/fog"], ["jsd"])):
        history.append(Measurement(epoch, epoch, dict.fromkeys([*names, "seconds"], 0.5)))
    path = written(tmp_path, history)
    kinds = [json.loads(line)["kind"] for line in path.read_bytes().splitlines()]
    assert kinds == ["header", "keys", *["measurement"] * 2, *["keys", "measurement"] * 2]
    assert read_record(path) == history


def test_records_of_the_first_schema_are_read(tmp_path: Path) -> None:
    lines = [
        {"kind": "header", "schema": 1, "run": "r", "layers": {"conv": "conv"}},
        {
            "kind": "matrix",
            "epoch": 2,
            "step": 30,
            "measure": "cka",
            "representation": "features",
            "rows": ["conv"],
            "columns": ["conv"],
            "values": [[0.5]],
        },
        {
            "kind": "measurement",
            "epoch": 2,
            "step": 30,
            "matrices": 1,
            "values": {
                "cka/features/a/conv": 0.5,
                "rank_correlation": None,
                "cka_jsd_pearson_low/features/a/conv": 0.25,
                "cka_nbs_slope": 0.125,
                "seconds": 2.0,
            },
        },
    ]
    path = tmp_path / "record.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = read_record(path)
    (measurement,) = history.measurements
    # What follows from others is left out.
    assert history.keys == [Key("cka", "features", "a/conv"), Key("rank_correlation")]
    assert (measurement.by_key[history.keys[0]], measurement.seconds) == (0.5, 2.0)
    assert np.isnan(measurement.by_key[history.keys[1]])
    assert history.matrix().values.tolist() == [[0.5]]


def test_what_stands_beside_the_values_is_read_back(tmp_path: Path) -> None:
    conv, jsd = Key("cka", "features", "conv"), Key("jsd")
    beside = {"standard_error": {conv: 0.125, jsd: 0.25}, "p_value": {conv: 0.5}}
    history = SimilarityHistory({}, [Measurement(0, 0, {conv: 0.75, jsd: 0.5}, (), beside)])
    path = history.save(tmp_path / "kept")
    line = json.loads((path / "record.jsonl").read_bytes().splitlines()[-1])
    assert line["statistics"] == {"standard_error": [0.125, 0.25], "p_value": [0.5, None]}
    assert read_history(path) == history


def test_every_float32_survives(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    history = SimilarityHistory({}, [Measurement(0, 0, {f"m{i}": float(x) for i, x in enumerate(numbers)})])
    read = read_record(written(tmp_path, history))
    np.testing.assert_array_equal(np.array(list(read.measurements[0].values.values()), np.float32), numbers)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.floats(width=32, allow_infinity=False)))
def test_every_name_survives(values: dict[str, float]) -> None:
    history = SimilarityHistory({"run": "r", "layers": {name: name for name in values}})
    history.append(Measurement(0, 0, values))
    with tempfile.TemporaryDirectory() as directory:
        assert read_record(written(Path(directory), history)) == history


def test_a_file_cut_anywhere_holds_the_measurements_committed_before_the_cut(tmp_path: Path) -> None:
    history = example_history()
    content = written(tmp_path, history).read_bytes()
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    commits = [end for end in ends if content[:end].splitlines()[-1].startswith(b'{"kind":"measurement"')]
    assert len(commits) == 3
    cut = tmp_path / "cut.jsonl"
    for position in range(ends[0], len(content) + 1):
        cut.write_bytes(content[:position])
        whole = sum(end - 1 <= position for end in commits)  # the newline itself is not needed
        assert read_record(cut).measurements == history.measurements[:whole]


def write_without_end(pipe, directory: Path) -> None:
    names = tuple(f"layer{i}" for i in range(60))
    writer = RecordWriter(directory, {"run": "killed"})
    for epoch in range(100_000):
        matrix = SimilarityMatrix("cka", "features", names, names, np.full((60, 60), epoch))
        writer.append(Measurement(epoch, epoch, {"jsd": epoch}, (matrix,)))


def test_a_killed_process_leaves_a_record_that_reads_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    process = Process(write_without_end, tmp_path)
    until = time.monotonic() + 120
    while time.monotonic() < until and (not path.exists() or path.stat().st_size < 1_000_000):
        time.sleep(0.02)
    process.kill()
    history = read_record(path)
    epochs = history.epochs
    assert len(epochs) > 10
    assert epochs == list(range(len(epochs)))
    for measurement in history.measurements:
        assert measurement.values["jsd"] == measurement.epoch
        assert (measurement.matrices[0].values == measurement.epoch).all()
    resumed = RecordWriter(tmp_path, {"run": "killed"}, history.measurements[:5], id_of(path))
    resumed.append(Measurement(5, 55, {"jsd": 0.5}))
    assert [m.step for m in read_record(path).measurements] == [0, 1, 2, 3, 4, 55]
    assert read_record(tmp_path / "record-1.jsonl") == history
    assert files_below(tmp_path) == {path, tmp_path / "record-1.jsonl"}


def test_a_record_can_be_read_while_it_grows(tmp_path: Path) -> None:
    history = example_history()
    writer = RecordWriter(tmp_path, history.metadata)
    for count, measurement in enumerate(history.measurements, start=1):
        writer.append(measurement)
        assert read_record(tmp_path).measurements == history.measurements[:count]


def test_a_full_disk_costs_nothing_that_was_written_and_is_made_up_for(tmp_path: Path) -> None:
    history = example_history()
    first, second, third = history.measurements
    writer = RecordWriter(tmp_path, history.metadata)
    writer.append(first)
    before = writer.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))  # forty bytes still fit
    try:
        with pytest.raises(OSError, match="could not be written"):
            writer.append(second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.path.read_bytes() == before
    writer.append(third)
    assert read_record(writer.path) == history


def test_a_half_written_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    history = example_history()
    writer = RecordWriter(tmp_path, history.metadata)
    writer.append(history.measurements[0])
    with writer.path.open("ab") as file:
        file.write(b'{"kind":"matrix","values":[' + b"1," * 10_000)
    writer.append(history.measurements[1])
    rest = writer.path.read_bytes().partition(b"\n")[2]
    expected = SimilarityHistory(history.metadata, history.measurements[:2])
    assert rest == written(tmp_path / "clean", expected).read_bytes().partition(b"\n")[2]


def test_another_runs_record_is_never_touched(tmp_path: Path) -> None:
    histories = [example_history(seed=seed) for seed in range(3)]
    for history in histories:
        written(tmp_path / "similarity", history)
    for place, history in zip(("similarity", "similarity-1", "similarity-2"), histories, strict=True):
        assert read_record(tmp_path / place) == history


def test_two_writers_on_one_path_lose_nothing(tmp_path: Path) -> None:
    history = example_history(epochs=6)
    a, b = (RecordWriter(tmp_path / "similarity", history.metadata) for _ in range(2))
    for writer, measurement in zip((a, a, a, b, a), history.measurements, strict=False):
        writer.append(measurement)
    assert [m.epoch for m in read_record(a.path).measurements] == [0, 1, 2, 4]
    assert [m.epoch for m in read_record(b.path).measurements] == [3]


def appending(pipe: Any, directory: Path, which: int, run_id: str | None = None) -> None:
    """What a process does: it says where it has written, and appends as often as it is asked to."""
    writer = RecordWriter(directory, {"run": str(which)}, [], run_id)
    for number, _ in enumerate(iter(pipe.recv, "close")):
        writer.append(Measurement(number, number, {"jsd": number, "which": which}))
        pipe.send(writer.path)
    writer.close()


@pytest.mark.parametrize("resumed", [False, True])
def test_processes_that_start_at_once_lose_nothing(tmp_path: Path, resumed: bool) -> None:
    directory, run_id = tmp_path / "similarity", None
    if resumed:
        former = RecordWriter(directory, {"run": "former"})
        former.append(Measurement(7, 7, {"jsd": 0.5}))
        former.close()
        run_id = former.run_id
    processes = [Process(appending, directory, which, run_id) for which in range(4)]
    for process in processes:
        for message in ("go",) * 40 + ("close",):
            process.pipe.send(message)
    for process in processes:
        process.finish()
    found = [read_record(path) for path in sorted(tmp_path.rglob("record*.jsonl"))]
    assert sorted(str(history.run) for history in found) == ["0", "1", "2", "3"] + ["former"] * resumed
    for history in found:
        assert history.epochs == ([7] if history.run == "former" else list(range(40)))
        if history.run != "former":
            assert {m.values["which"] for m in history.measurements} == {float(str(history.run))}
    assert (directory / "record-1.jsonl").is_file() == resumed
    assert not [path for path in files_below(tmp_path) if not path.name.startswith("record")]


def test_appends_of_two_processes_in_turn(tmp_path: Path) -> None:
    a, b = (Process(appending, tmp_path / "similarity", which) for which in range(2))
    places = [process.ask("go") for process in (a, a, a, b, a, b, b, a)]
    assert len(set(places)) == 2
    for process in (a, b):
        process.kill()
    assert sorted(len(read_record(place)) for place in set(places)) == [3, 5]


def test_a_living_writer_is_not_superseded_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    directory = tmp_path / "similarity"
    first = Process(appending, directory, 0)
    path = [first.ask("go") for _ in range(3)][-1]
    run_id = id_of(path)
    second = Process(appending, directory, 1, run_id)
    assert second.ask("go") == tmp_path / "similarity-1" / "record.jsonl"
    assert first.ask("go") == path
    for process in (first, second):
        process.kill()
    third = RecordWriter(directory, {"run": "2"}, read_record(path).measurements, run_id)
    assert third.claim() == directory
    assert third.run_id == run_id
    third.append(Measurement(4, 4, {"jsd": 4}))
    assert read_record(path).epochs == [0, 1, 2, 3, 4]
    assert files_below(directory) == {path}  # nothing was superseded


def write_and_fork(pipe, directory: Path) -> None:
    writer = RecordWriter(directory, {})
    writer.append(Measurement(0, 0, {"jsd": 0}))
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    pipe.send(child)
    time.sleep(60)


def test_processes_forked_from_a_writer_do_not_hold_its_record(tmp_path: Path) -> None:
    process = Process(write_and_fork, tmp_path)
    child = process.hear()
    try:
        time.sleep(0.3)  # the child's own first steps
        process.kill()
        assert RecordWriter(tmp_path, {}, [], id_of(tmp_path / "record.jsonl")).claim() == tmp_path
    finally:
        os.kill(child, signal.SIGKILL)


def test_resuming_keeps_what_is_superseded_and_fails_without_touching_it(tmp_path: Path) -> None:
    history = example_history()
    writer = RecordWriter(tmp_path, history.metadata, history.measurements)
    writer.claim()
    writer.close()
    path, shorter = writer.path, history.measurements[:1]
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    failing = RecordWriter(tmp_path, history.metadata, shorter, writer.run_id)
    try:
        with pytest.raises(OSError, match="could not be written"):
            failing.claim()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert files_below(tmp_path) == {path}
    failing.append(Measurement(1, 20, {"jsd": 0.25}))
    assert [m.step for m in read_record(path).measurements] == [9, 20]
    assert (tmp_path / "record-1.jsonl").read_bytes() == before
    assert read_history(tmp_path / "record-1.jsonl") == history


def test_a_record_that_is_removed_is_written_anew(tmp_path: Path) -> None:
    history = example_history(epochs=5)
    writer = RecordWriter(tmp_path / "run" / "similarity", history.metadata)
    writer.append(history.measurements[0])
    shutil.rmtree(tmp_path / "run")
    writer.append(history.measurements[1])
    assert read_record(writer.path).measurements == history.measurements[:2]
    writer.path.unlink()
    other = RecordWriter(writer.wanted, {"run": "other"}, history.measurements[:1])
    other.claim()
    writer.append(history.measurements[2])
    assert writer.path.parent.name == "similarity-1"
    assert read_record(writer.path).measurements == history.measurements[:3]
    assert read_record(other.path).run == "other"
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file where the directory was")
    with pytest.raises(OSError, match="could not be written"):
        writer.append(history.measurements[3])
    (tmp_path / "run").unlink()
    writer.close()
    assert read_record(writer.path).measurements == history.measurements[:4]


def test_without_locks_a_replaced_writer_moves_to_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "try_lock", lambda descriptor: None)
    history = example_history()
    first = RecordWriter(tmp_path / "similarity", history.metadata)
    first.append(history.measurements[0])
    second = RecordWriter(tmp_path / "similarity", history.metadata, [], first.run_id)
    second.append(history.measurements[1])
    first.append(history.measurements[2])
    assert second.path == tmp_path / "similarity" / "record.jsonl"
    assert first.run_id != second.run_id
    assert read_record(second.path).measurements == [history.measurements[1]]
    assert read_record(first.path).measurements == [history.measurements[0], history.measurements[2]]


def test_a_copy_of_a_writer_owns_no_file(tmp_path: Path) -> None:
    history = example_history()
    writer = RecordWriter(tmp_path / "similarity", history.metadata)
    writer.append(history.measurements[0])
    copied = pickle.loads(pickle.dumps(writer))
    copied.append(history.measurements[1])
    writer.append(history.measurements[2])
    assert copied.path.parent.name == "similarity-1"
    assert [m.epoch for m in read_record(writer.path).measurements] == [0, 2]


def test_matrices_left_by_a_killed_write_belong_to_no_measurement(tmp_path: Path) -> None:
    history = example_history()
    path = written(tmp_path, history)
    header, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([header, rest[1], *rest]))  # another's matrix above the first measurement
    assert read_record(path) == history


def test_lines_written_by_others_need_not_be_compact(tmp_path: Path) -> None:
    history = example_history()
    path = written(tmp_path, history)
    path.write_text("\n".join(json.dumps(json.loads(line)) for line in path.read_text().splitlines()))
    assert b'{"kind": "matrix"' in path.read_bytes()
    assert read_record(path) == history


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, b'{"kind":"measurement"}', "line 1 is not the header"),
        (1, b'{"kind":"header","schema":3}', "schema 3"),
        (2, b'{"kind":"keys"}', "line 2 is damaged: KeyError: 'keys'"),
        (2, b'{"kind":"keys","keys":[["a"],["a"]]}', "keys must be different"),
        (2, b'{"kind":"keys","keys":[[1]]}', "keys must be different lists of text"),
        (2, b'{"kind":"keys","keys":[["a"]]}', "line 4 is damaged: ValueError"),
        (3, b'{"kind":"measurement","epoch":0', "line 3 is damaged"),
        (
            3,
            b'{"kind":"measurement","epoch":0,"step":0,"values":{}}',
            "line 3 is damaged: KeyError: 'matrices'",
        ),
        (
            3,
            b'{"kind":"measurement","epoch":0,"step":0,"matrices":2,"values":{}}',
            "names 2 matrices, 0 stand",
        ),
        (3, b'{"kind":"measurement","epoch":1e999,"step":0,"matrices":0,"values":{}}', "line 3 is damaged"),
        (
            3,
            b'{"kind":"measurement","epoch":0,"step":0,"matrices":0,"values":{"a":[1]}}',
            "line 3 is damaged",
        ),
        (
            3,
            b'{"kind":"measurement","epoch":0,"step":0,"matrices":0,"values":{"a":"x"}}',
            "line 3 is damaged",
        ),
        (3, b'{"kind":"measurement","epoch":0,"step":0,"matrices":0,"values":7}', "line 3 is damaged"),
        (3, b'{"kind":"surprise"}', "unknown kind 'surprise'"),
        (3, b"[1]", "expected a JSON object, got list"),
        (3, b"[" * 100_000, "line 3 is damaged"),
        (3, b"\xff\x00", "line 3 is damaged"),
    ],
)
def test_damage_elsewhere_than_at_the_end_is_named(
    tmp_path: Path, number: int, line: bytes, message: str
) -> None:
    path = written(tmp_path, example_history())
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=f"record.jsonl.*{message}"):
        read_record(path)


@pytest.mark.parametrize("line", [b'{"kind":"matrix",oops}', b'{"kind":"matrix","values":[[1]]}'])
def test_a_damaged_matrix_is_named_when_it_is_asked_for(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path, example_history())
    lines = path.read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    history = read_record(path)
    assert history.matrix("cka", epoch=2).values.shape == (2, 2)
    with pytest.raises(ValueError, match="line 3"):
        history.matrix("cka", epoch=0)


@pytest.mark.parametrize("content", [b"", b'{"kind":"hea'])
def test_a_record_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="holds no header"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"kind": "x"}, "'kind'"),
        ({"probe": object()}, r"metadata\['probe'\]"),
        ({"rate": float("nan")}, "'rate'"),
    ],
)
def test_metadata_that_json_cannot_hold_is_refused(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RecordWriter(tmp_path, metadata)


def test_nothing_is_written_outside_the_directory(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "run" / "similarity"
    path = written(inner, example_history(layers=HOSTILE))
    assert files_below(tmp_path) == {path}
    assert read_history(inner.parent) == example_history(layers=HOSTILE)
