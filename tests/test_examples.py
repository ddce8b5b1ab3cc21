"""Every example runs as a user would run it, in a process of its own."""

import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from lightning_sim import read_history
from tests.processes import Process

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, directory, *arguments):
    process = Process(example, name, directory, arguments)
    output = process.hear(timeout=240)
    process.finish()
    return output


def example(pipe, name, directory, arguments):
    os.chdir(directory)
    sys.path.insert(0, str((EXAMPLES / name).parent))
    sys.argv = [str(EXAMPLES / name), *arguments]
    with redirect_stdout(StringIO()) as output:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    pipe.send(output.getvalue())


def test_finetuning_stops_on_drift_when_the_new_task_is_learnt(tmp_path):
    output = run("finetune_drift.py", tmp_path)
    values = re.search("CKA of dense with the checkpoint: (.*)", output)[1].split(", ")
    assert float(values[-1]) < 0.84 <= min(map(float, values[:-1]))
    assert values[0] == "1.000"  # before the first step
    assert f"stopped after {len(values) - 1} of 10 epochs" in output
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


def test_agreement_under_corruption_and_attack(tmp_path):
    output = run("corruption.py", tmp_path, "--epochs", "3")
    rows = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in output.splitlines()[1:-1]}
    assert len(rows) == 11
    assert rows["clean"][0] > 0.7
    assert rows["pgd_0.1_self"][0] < rows["clean"][0] - 0.1
    assert rows["fog_1"][0] < rows["clean"][0]
    for name in ("contact_sheet.png", "agreement.png", "agreement/record.jsonl"):
        assert (tmp_path / "corruption" / name).stat().st_size > 10_000 or name.endswith("jsonl")


def test_a_loop_of_one_s_own(tmp_path):
    output = run("own_loop.py", tmp_path)
    values = re.findall(r"epoch \d: CKA of dense with the start ([\d.]+)", output)
    assert len(values) == 3
    assert all(0.2 < float(value) < 0.99 for value in values)
    assert [m.epoch for m in read_history(tmp_path / "own_loop" / "similarity").measurements] == [0, 0, 1, 2]


def test_the_trainer_of_transformers(tmp_path):
    output = run("transformers_trainer.py", tmp_path)
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert all(0 < float(value) < 1 for value in rows["bert.encoder.layer.1"])
    history = read_history(tmp_path / "transformers_run" / "similarity")
    assert [(m.epoch, m.step) for m in history.measurements] == [(0, 43), (1, 86), (2, 129)]


def test_weights_only(tmp_path):
    output = run("weights_only.py", tmp_path)
    rows = {line.split()[0]: [float(value) for value in line.split()[1::3]] for line in output.splitlines()[1:]}
    assert list(rows) == ["0.0", "1", "2", "3", "4.2"]
    start, last, seed, untrained = zip(*rows.values(), strict=True)
    assert min(last) > 0.8
    assert all(a > b for a, b in zip(last, seed, strict=True))
    assert sum(last) > sum(start)
    assert sum(map(abs, untrained)) / 5 < 0.3
