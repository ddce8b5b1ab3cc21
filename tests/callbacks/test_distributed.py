"""Monitored trainings in several processes, for real, against values computed from the checkpoint of rank 0."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_sim import read_history
from tests.callbacks.training import digits, features, new_network
from tests.sketch import exact


def launch(tmp_path, devices, num_samples, epochs=2):
    command = [sys.executable, "-m", "tests.callbacks.distributed_script", tmp_path, devices, num_samples, epochs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("devices", "num_samples"), [(2, 101), (3, 4)])
def test_ranks_together_measure_what_the_definition_says(tmp_path, devices, num_samples):
    result = launch(tmp_path, devices, num_samples)
    assert result["world"] == devices
    assert all(keys == result["keys"][0] for keys in result["keys"])
    assert read_history(tmp_path).to_records() == result["records"]

    probe = TensorDataset(*digits(300, 300 + num_samples).tensors)
    start, trained = new_network(), new_network()
    # Batch normalisation's statistics differ between the ranks: rank 0's are in the checkpoint.
    trained.load_state_dict(torch.load(tmp_path / "trained.ckpt", weights_only=True)["state_dict"])
    values = {(r["measure"], r["layer"]): r["value"] for r in result["records"] if r["epoch"] == 1}
    for layer in ("net.0", "net.3", "net.8"):
        before, after = features(start, layer, probe), features(trained, layer, probe)
        assert values["cka", layer] == pytest.approx(exact.cka_unbiased(after, before), abs=1e-5)
        assert values["nbs", layer] == pytest.approx(exact.nbs(after, before), abs=1e-5)
    agreed = (features(start, "net.8", probe).argmax(1) == features(trained, "net.8", probe).argmax(1)).float().mean()
    assert values["agreement", None] == pytest.approx(float(agreed), abs=1e-6)
