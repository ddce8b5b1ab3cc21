"""A training killed by SIGKILL during a measurement, or between it and the checkpoint, is continued whole."""

import os
import signal
import subprocess
import sys

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks.training import digits, fit, new_network


@pytest.mark.parametrize(("moment", "recorded"), [("during", [0, 1]), ("after", [0, 1, 2])])
def test_the_record_has_every_epoch_once_after_resuming(tmp_path, moment, recorded):
    command = [sys.executable, "-m", "tests.callbacks.killed_script", str(tmp_path), moment]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert read_history(tmp_path).epochs == recorded
    monitor = SimilarityMonitor(probe=digits(300, 313))
    checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    path = tmp_path / "last.ckpt"
    options = {"root": tmp_path, "enable_checkpointing": True, "epochs": 5}
    fit([monitor, checkpoint], network=new_network(seed=7), ckpt_path=path, **options)
    assert monitor.history.epochs == [0, 1, 2, 3, 4]
    assert [row["epoch"] for row in read_history(tmp_path).to_records() if row["measure"] == "jsd"] == [0, 1, 2, 3, 4]
    # The reference is the first network's start, not the weights that the resumed one was made with.
    assert monitor.history.trajectory("cka", layer="net.8").values[0] > 0.3
