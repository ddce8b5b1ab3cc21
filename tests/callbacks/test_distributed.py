"""Monitored trainings in several processes, for real, against values computed from the checkpoint of rank 0."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_sim import Sketch, read_history
from lightning_sim.functional import estimate
from lightning_sim.sketch import load_sketches
from tests.callbacks.distributed_script import main
from tests.callbacks.launching import forked, launch
from tests.callbacks.training import digits, features, new_network
from tests.processes import Process
from tests.sketch import exact


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Of two processes, which saved its sketches: the directory, and what it told."""
    path = tmp_path_factory.mktemp("training")
    return path, launch(path, 2, 101, kind="saving", warnings="default")


def assert_measured(tmp_path, num_samples):
    """The record's last epoch against values computed from the weights of rank 0."""
    probe = TensorDataset(*digits(300, 300 + num_samples).tensors)
    start, trained = new_network(), new_network()
    # Batch normalisation's statistics differ between the ranks: rank 0's are in the checkpoint.
    trained.load_state_dict(torch.load(tmp_path / "trained.ckpt", weights_only=True)["state_dict"])
    rows = [row for row in read_history(tmp_path).to_records() if row["epoch"] == 1]
    values = {(r["measure"], r["layer"]): r["value"] for r in rows}
    errors = {(r["measure"], r["layer"]): r["standard_error"] for r in rows}
    for layer in ("net.0", "net.3", "net.8"):
        before, after = features(start, layer, probe), features(trained, layer, probe)
        assert values["cka", layer] == pytest.approx(exact.cka_unbiased(after, before), abs=1e-5)
        assert values["nbs", layer] == pytest.approx(exact.nbs(after, before), abs=1e-5)
        alone = estimate(after, before).standard_error
        assert errors["cka", layer] == pytest.approx(float(alone), abs=1e-5)
    agreed = (features(start, "net.8", probe).argmax(1) == features(trained, "net.8", probe).argmax(1)).float().mean()
    assert values["agreement", None] == pytest.approx(float(agreed), abs=1e-6)


def test_sketches_of_all_ranks_are_saved_once(training):
    path, _ = training
    paths = sorted((path / "similarity" / "sketches").iterdir())
    assert len(paths) == 2
    held = load_sketches(paths[-1])
    probe = TensorDataset(*digits(300, 401).tensors)
    trained = new_network()
    trained.load_state_dict(torch.load(path / "trained.ckpt", weights_only=True)["state_dict"])
    assert torch.allclose(held.logits, features(trained, "net.8", probe).float(), atol=1e-5)
    for layer in ("net.0", "net.3", "net.8"):
        sketch = held.of()[layer]
        alone = Sketch(sketch.num_buckets, sketch.num_projections, sketch.seed)
        alone.update(features(trained, layer, probe).float(), torch.arange(101))
        assert (sketch.count, sketch.fingerprint) == (alone.count, alone.fingerprint)
        for mine, theirs in zip(sketch.sums(), alone.sums(), strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def assert_told(path, result, devices, num_samples):
    assert result["world"] == devices
    assert all(rank["keys"] == result["ranks"][0]["keys"] for rank in result["ranks"])
    assert read_history(path).to_records() == result["records"]
    assert_measured(path, num_samples)


def test_ranks_together_measure_what_the_definition_says(training):
    assert_told(*training, 2, 101)


def test_a_rank_may_have_almost_nothing_to_run(tmp_path):
    assert_told(tmp_path, forked(tmp_path, 3, 4), 3, 4)


def test_processes_log_the_same_values_without_advice_to_reduce_them(training):
    _, result = training
    assert "sync_dist" not in "".join(line for line in result["errors"].splitlines() if "similarity/" in line)
    assert "self.log('accuracy', ..., sync_dist=True)" in result["errors"]  # the network's own
    first, second = (rank["logged"] for rank in result["ranks"])
    recorded = {}
    for row in result["records"]:
        if row["epoch"] == 1:
            parts = ["similarity", row["measure"], row["representation"], row["layer"]]
            recorded["/".join(part for part in parts if part)] = float(np.float32(row["value"]))
    assert len(recorded) >= 9
    for name, value in recorded.items():
        if name != "similarity/seconds":
            assert first[name] == second[name] == value


def test_only_rank_zero_writes_to_a_wandb_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = forked(tmp_path, 2, 20, kind="wandb")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    directory = tmp_path / "lightning_logs" / run.name.rpartition("-")[2] / "similarity"
    assert [rank["directory"] for rank in result["ranks"]] == [str(directory), None]
    assert list(tmp_path.rglob("record*.jsonl")) == [directory / "record.jsonl"]
    assert read_history(directory).to_records() == result["records"]


def spawning(pipe, root):
    pipe.send(main(root, 2, 101, 2, "spawn"))


def test_spawned_processes_measure_the_same(tmp_path):
    process = Process(spawning, str(tmp_path))
    assert process.hear(timeout=240)["world"] == 2
    process.finish()
    assert_measured(tmp_path, 101)


def test_a_failure_on_one_rank_is_nan_on_all_and_training_goes_on(tmp_path):
    # 14 samples give each rank a batch of 7, a size that validation never has.
    result = forked(tmp_path, 2, 14, epochs=3, kind="failing")
    values = [row["value"] for row in result["records"] if row["measure"] == "cka" and row["layer"] == "net.0"]
    assert np.isnan(values).tolist() == [False, True, False]


@pytest.mark.study
@pytest.mark.timeout(1200)
def test_memory_does_not_grow(tmp_path):
    result = launch(tmp_path, 2, 101, epochs=50, timeout=1000)
    assert len({row["epoch"] for row in result["records"]}) == 50
    for rank in result["ranks"]:
        assert max(rank["memory"][5:]) <= 1.01 * rank["memory"][5]
