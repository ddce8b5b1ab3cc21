"""Every example runs as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, directory, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=directory,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_finetuning_stops_on_drift(tmp_path):
    output = run("finetune_drift.py", tmp_path, "--epochs", "8", "--lowest", "0.9")
    last = next(line for line in output.splitlines() if line.startswith("CKA of hidden.3")).split(",")
    assert float(last[-1]) < 0.9 <= float(last[-2])
    assert f"stopped after epoch {len(last) - 1}" in output


def test_the_language_model(tmp_path):
    output = run("language_model.py", tmp_path, "--epochs", "1", "--samples", "100", "--out", str(tmp_path / "run"))
    layers = [line.split()[2] for line in output.splitlines() if line.startswith("CKA of")]
    assert layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    assert (tmp_path / "run" / "similarity" / "record.jsonl").is_file()
