"""Every example runs as a user would run it."""

import os
import re
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


def test_finetuning_stops_on_drift_when_the_new_task_is_learnt(tmp_path):
    output = run("finetune_drift.py", tmp_path)
    values = re.search("CKA of dense with the checkpoint: (.*)", output)[1].split(", ")
    assert float(values[-1]) < 0.84 <= min(map(float, values[:-1]))
    assert f"stopped after {len(values)} of 10 epochs" in output
    accuracy = r"([\d.]+)% before, ([\d.]+)% after"
    rotated, upright = (
        [float(share) for share in re.search(f"{task} digits: {accuracy}", output).groups()]
        for task in ("rotated", "upright")
    )
    assert rotated[0] < 20
    assert rotated[1] > 70
    assert upright[0] > 85
    assert 20 < upright[1] < 75


def test_the_language_model(tmp_path):
    output = run("language_model.py", tmp_path, "--epochs", "1", "--samples", "100", "--out", str(tmp_path / "run"))
    layers = [line.split()[2] for line in output.splitlines() if line.startswith("CKA of")]
    assert layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    assert (tmp_path / "run" / "similarity" / "record.jsonl").is_file()


def test_measures_of_your_own(tmp_path):
    output = run("your_own_measure.py", tmp_path)
    rows = {tuple(line.split()[:2]): line.split() for line in output.splitlines()}
    assert ("disparity", "conv1") in rows
    shares = [float(value) for value in rows["mutual_knn", "conv1"][2:]]
    assert len(shares) == 4
    assert all(0 < share <= 1 for share in shares)
    assert "lost_confidence" in output


def test_stitching(tmp_path):
    output = run("stitching.py", tmp_path, "--out", str(tmp_path / "figures"))
    rows = {line[:36].strip(): [float(value) for value in line[36:].split()] for line in output.splitlines()[1:-1]}
    squares, rotation, untrained = (
        rows[f"relative accuracy, {name}"] for name in ("least squares", "orthogonal", "untrained front")
    )
    assert len(squares) == 4
    assert all(value > 0.5 for value in (*squares, *rotation))
    assert sum(squares) > sum(untrained) + 0.5
    assert all(a > b for a, b in zip(*(rows[f"R2, {kind}"] for kind in ("least squares", "task loss")), strict=True))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"figure_{n}.png" for n in (2, 4, 7, 8)}
    assert "Figure 5 is not reproduced" in output
