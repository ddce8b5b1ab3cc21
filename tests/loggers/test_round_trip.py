"""The same run through every logger gives the same table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_sim.loggers import setup_loggers
from lightning_sim.record import Measurement, SimilarityHistory, SimilarityMatrix, read_history
from lightning_sim.record.file import RecordWriter

from .conftest import LAYERS
from .runs import example_history, log_scalars, table


@pytest.fixture(scope="module")
def history() -> SimilarityHistory:
    return example_history(30, LAYERS)


def assert_same_table(
    read: SimilarityHistory, history: SimilarityHistory, without: tuple[str, ...] = ()
) -> None:
    expected, got = table(history, without=without), table(read, without=without)
    assert len(expected) == 30 * (3 * len(LAYERS) + 1)
    assert got.keys() == expected.keys()
    assert [got[key].tobytes() for key in expected] == [value.tobytes() for value in expected.values()]


def test_record(history: SimilarityHistory, tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "similarity", history.metadata)
    for measurement in history.measurements:
        writer.append(measurement)
    assert_same_table(read_history(tmp_path), history)


@pytest.mark.parametrize("prefix", ["", "mine"])
def test_tensorboard(history: SimilarityHistory, tmp_path: Path, prefix: str) -> None:
    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    setup_loggers([logger], history.keys, history)
    log_scalars(logger, history)
    logger.finalize("success")
    name = f"{prefix}-similarity" if prefix else "similarity"
    assert_same_table(read_history(logger.log_dir, name=name), history)


def test_csv(history: SimilarityHistory, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    setup_loggers([logger], history.keys, history)
    log_scalars(logger, history)
    read = read_history(logger.log_dir)
    assert read.run == "lightning_logs/version_0"
    assert {row["reference_layer"] for row in read.to_records()} == {None}
    assert_same_table(read, history, without=("run", "reference_layer"))


def test_offline_wandb(wandb_run: tuple[SimilarityHistory, Path]) -> None:
    history, directory = wandb_run
    assert_same_table(read_history(directory), history)


def test_what_is_infinite_is_nan_in_memory_checkpoint_and_record(tmp_path: Path) -> None:
    values = {"a": math.inf, "b": -math.inf, "c": 1e300, "d": 0.5}
    matrix = SimilarityMatrix("cka", "features", ("a",), ("b", "c"), np.array([[np.inf, 0.5]]))
    history = SimilarityHistory({}, [Measurement(0, 1, values, (matrix,))])
    restored = SimilarityHistory.from_state(history.to_state())
    writer = RecordWriter(tmp_path, history.metadata, history.measurements)
    writer.claim()
    for held in (history, restored, read_history(tmp_path)):
        assert list(map(math.isnan, held.measurements[0].values.values())) == [True, True, True, False]
        assert np.isnan(held.matrix().values).tolist() == [[True, False]]
        assert held == history
