"""What W&B itself wrote into the run file of an offline run."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_sim.loggers.wandb import WandbAdapter
from lightning_sim.record import Measurement, SimilarityHistory, read_history
from lightning_sim.record.table import COLUMNS
from lightning_sim.record.wandb import _log_entries

from .runs import files_below


def run_file(directory: Path) -> Path:
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return path


def records(directory: Path, kind: str) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for entry in _log_entries(run_file(directory)):
        record = wandb_internal_pb2.Record.FromString(entry)
        if record.WhichOneof("record_type") == kind:
            yield getattr(record, kind)


def items(entries: Any) -> dict[str, Any]:
    """{key: value} with nested keys joined by spaces."""
    return {
        " ".join([entry.key] if entry.key else entry.nested_key): json.loads(entry.value_json)
        for entry in entries
    }


def final_summary(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for record in records(directory, "summary"):
        summary.update(items(record.update))
    return summary


def test_one_row_per_measurement_with_the_step_of_the_trainer(
    wandb_run: tuple[SimilarityHistory, Path],
) -> None:
    history, directory = wandb_run
    rows = [items(record.item) for record in records(directory, "history")]
    scalars = [row for row in rows if "similarity/jsd" in row]
    assert [row["trainer/global_step"] for row in scalars] == [m.step for m in history.measurements]
    for row, measurement in zip(scalars, history.measurements, strict=True):
        assert {f"similarity/{name}" for name in measurement.values} < row.keys()
        assert row["similarity/cka/features/block.0"] == measurement.values["cka/features/block.0"]


def test_all_figures_of_a_step_are_one_row_of_images_inside_the_run(
    wandb_run: tuple[SimilarityHistory, Path],
) -> None:
    history, directory = wandb_run
    rows = [items(record.item) for record in records(directory, "history")]
    images = [row for row in rows if "similarity/matrix/cka _type" in row]
    assert [row["trainer/global_step"] for row in images] == [m.step for m in history.measurements[:2]]
    media = run_file(directory).parent / "files"
    for row in images:
        assert row["similarity/matrix/cka _type"] == "image-file"
        assert row["similarity/_/_/_/_/x _type"] == "image-file"
        for name in ("similarity/matrix/cka", "similarity/_/_/_/_/x"):
            picture = (media / row[f"{name} path"]).resolve()
            assert picture.is_relative_to(media.resolve())
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_summaries_hold_last_lowest_and_highest_also_for_names_with_dots(
    wandb_run: tuple[SimilarityHistory, Path],
) -> None:
    history, directory = wandb_run
    summary = final_summary(directory)
    for layer in history.layers:
        values = history.trajectory("cka", layer=layer).values.tolist()
        expected = {"last": values[-1], "min": min(values), "max": max(values)}
        if not layer.endswith("\\"):  # W&B's own escaping loses it: such a name has the last value only
            assert summary[f"similarity/cka/features/{layer}"] == pytest.approx(expected)
        epoch = values.index(min(values))
        assert summary[f"similarity/cka/features/{layer}.epoch_of_min"] == epoch


def test_every_name_keeps_the_step_metric_of_the_logger(wandb_run: tuple[SimilarityHistory, Path]) -> None:
    history, directory = wandb_run
    metrics = {record.name: record for record in records(directory, "metric") if record.name}
    for name in history.names:
        metric = metrics[f"similarity/{name}".replace(".", "\\.")]
        assert (metric.step_metric, metric.options.step_sync) == ("trainer/global_step", True)


def test_the_config_holds_the_metadata(wandb_run: tuple[SimilarityHistory, Path]) -> None:
    history, directory = wandb_run
    updates = [items(record.update) for record in records(directory, "config")]
    assert [update["similarity"] for update in updates if "similarity" in update] == [history.metadata]


def test_one_long_table_at_the_end_holds_every_number(wandb_run: tuple[SimilarityHistory, Path]) -> None:
    history, directory = wandb_run
    rows = [items(record.item) for record in records(directory, "history")]
    (table,) = [row for row in rows if "similarity/table path" in row]
    content = json.loads((run_file(directory).parent / "files" / table["similarity/table path"]).read_text())
    assert content["columns"] == list(COLUMNS)
    expected = [list(record.values()) for record in history.to_records()]
    value = COLUMNS.index("value")
    assert [row[:value] + row[value + 1 :] for row in content["data"]] == [
        row[:value] + row[value + 1 :] for row in expected
    ]
    assert [row[value] for row in content["data"]] == pytest.approx([row[value] for row in expected], nan_ok=True)


def test_the_table_is_thinned_evenly_when_it_would_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr("lightning_sim.loggers.wandb.MAX_TABLE_ROWS", 6)
    logged: list[dict[str, Any]] = []

    class Experiment:
        summary: dict[str, Any] = {}  # noqa: RUF012
        log = staticmethod(logged.append)

    class Logger:
        experiment = Experiment()

    history = SimilarityHistory({}, [Measurement(e, e, {"jsd": e, "agreement": -e}) for e in range(8)])
    WandbAdapter().finish(Logger(), history, "similarity")
    table = logged[0]["similarity/table"]
    assert isinstance(table, wandb.Table)
    assert [row[1] for row in table.data] == [1, 1, 4, 4, 7, 7]
    assert Experiment.summary == {"similarity/jsd.epoch_of_min": 0, "similarity/agreement.epoch_of_min": 7}


def leveldb_log(entries: list[bytes]) -> bytes:
    """Entries in LevelDB's log format, after its description: no piece crosses a block of 32 KiB."""
    content = b":W&B\xe1\xbe\x00"
    for entry in entries:
        started = False
        while True:
            left = 32768 - len(content) % 32768
            if left < 7:
                content += bytes(left)
                continue
            piece, entry = entry[: left - 7], entry[left - 7 :]
            kind = {(False, False): 1, (False, True): 2, (True, True): 3, (True, False): 4}[
                (started, bool(entry))
            ]
            checksum = zlib.crc32(bytes([kind]) + piece)
            content += struct.pack("<IHB", checksum, len(piece), kind) + piece
            started = True
            if not entry:
                break
    return content


@pytest.mark.parametrize("left", range(10))
def test_entries_are_found_across_blocks(tmp_path: Path, left: int) -> None:
    first = bytes(32768 - 7 - 7 - left)  # `left` bytes remain in the first block
    entries = [first, b"small", bytes(range(256)) * 400, b"", b"last"]
    (tmp_path / "run-a.wandb").write_bytes(leveldb_log(entries))
    assert list(_log_entries(tmp_path / "run-a.wandb")) == entries


def test_a_run_file_cut_short_gives_the_rows_before_the_cut(
    wandb_run: tuple[SimilarityHistory, Path], tmp_path: Path
) -> None:
    history, directory = wandb_run
    content = run_file(directory).read_bytes()
    cut = tmp_path / "run-abc.wandb"
    lengths = []
    for position in range(len(content) // 4, len(content), len(content) // 23):
        cut.write_bytes(content[:position])
        read = read_history(cut)
        lengths.append(len(read))
        assert read.names == sorted(read.names, key=read.names.index)
        for got, expected in zip(read.measurements, history.measurements, strict=False):
            assert (got.epoch, got.step, got.values.keys()) == (
                expected.epoch,
                expected.step,
                expected.values.keys(),
            )
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 30


def test_a_damaged_run_file_is_refused(wandb_run: tuple[SimilarityHistory, Path], tmp_path: Path) -> None:
    content = bytearray(run_file(wandb_run[1]).read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run-abc.wandb is damaged at byte \d+"):
        read_history(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no W&B run file"):
        read_history(path)


def test_several_runs_are_named(wandb_run: tuple[SimilarityHistory, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        directory = tmp_path / "wandb" / f"offline-run-2026-{name}"
        directory.mkdir(parents=True)
        (directory / f"run-{name}.wandb").write_bytes(run_file(wandb_run[1]).read_bytes())
    with pytest.raises(ValueError, match=r"several W&B runs.*run-a\.wandb.*run-b\.wandb"):
        read_history(tmp_path)
    assert len(read_history(tmp_path / "wandb" / "offline-run-2026-a")) == 30


def test_nothing_climbs_out_of_the_directory(wandb_run: tuple[SimilarityHistory, Path]) -> None:
    directory = wandb_run[1]
    outer = directory.parents[1]
    assert all(path.is_relative_to(directory) for path in files_below(outer))
