from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lightning_sim import SimilarityHistory, __version__, cli
from lightning_sim.demo import Demo, terminal
from lightning_sim.measures import MEASURES
from lightning_sim.record import Measurement
from lightning_sim.record.file import RecordWriter


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="lightning-sim")
    assert script.value == "lightning_sim.cli:main"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "demo"),
        (["--version"], 0, __version__),
        (["demo", "--help"], 0, "--epochs"),
        (["report", "--help"], 0, "--format"),
        (["compare", "--help"], 0, "--measure"),
        (["dmeo"], 2, "invalid choice: 'dmeo'"),
        (["report"], 2, "required: RUN"),
        (["compare", "x", "--out", "x.docx"], 2, "must end in .csv"),
    ],
)
def test_help_and_wrong_arguments_are_answered_without_the_wait_for_torch(
    arguments: list[str], status: int, said: str
) -> None:
    code = f"import sys; from lightning_sim.cli import main\ntry: main({arguments})\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == status
    assert said in result.stdout + result.stderr
    loaded = result.stdout.split()
    assert "argparse" in loaded
    assert not {"torch", "numpy", "lightning", "rich"} & set(loaded)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"lightning-sim {__version__}"


def test_missing_extras_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def without(name: str, *args: Any) -> Any:
        return None if name in ("sklearn", "tensorboard") else find_spec(name, *args)

    monkeypatch.setattr(cli, "find_spec", without)
    assert cli.main(["demo", "--out", str(tmp_path / "runs")]) == 1
    message = capsys.readouterr().err
    assert "scikit-learn, tensorboard: pip install 'lightning-sim[demo]'" in message
    assert "rich" not in message
    assert not (tmp_path / "runs").exists()


def test_the_report_needs_no_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scales = {"cka": MEASURES["cka"].scale.to_state()}
    RecordWriter(tmp_path, {"scales": scales}).append(Measurement(0, 9, {"cka/features/conv": 0.25, "jsd": 0.5}))
    for name in ["rich", *(name for name in sys.modules if name.startswith("rich."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["report", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv", "0.250", "0.250", "0.250", "0", "-", "▅"] in rows


def test_a_file_as_directory_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.main(["demo", "--out", str(file)]) == 1
    assert f"--out {file} cannot be written to" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_the_demo_explains_itself_and_keeps_earlier_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run_demo(directory: Path, *, epochs: int, seed: int, on_batch: Callable[[str], None]) -> Demo:
        asked.extend([directory, epochs, seed])
        for _ in range(22):
            on_batch("fine-tuned")
        accuracies = {"reference": 0.911, "fine-tuned": 0.822, "from scratch": 0.733}
        values = {"cka/features/conv": 0.4444, "agreement": 0.5555}
        histories = {name: SimilarityHistory({}, [Measurement(0, 9, values)]) for name in list(accuracies)[1:]}
        return Demo(directory, histories, accuracies)

    monkeypatch.setattr(terminal, "run_demo", run_demo)
    out = tmp_path / "my [bold] runs"
    (out / "version_0").mkdir(parents=True)
    assert cli.main(["demo", "--out", str(out), "--epochs", "1", "--seed", "5"]) == 0
    run = out / "version_1"
    assert asked == [run, 1, 5]
    assert run.is_dir()
    captured = capsys.readouterr()
    assert captured.err == ""
    for part in (
        "22/22 batches",
        "reference 91.1%, fine-tuned 82.2%, from scratch 73.3%",
        "After fine-tuning, CKA with the checkpoint is",
        f"Figure       {run / 'similarity.png'}\n",
        f"TensorBoard  tensorboard --logdir '{run}'\n",
        f"lightning_sim.read_history({str(run / 'fine-tuned')!r}).to_pandas()",
    ):
        assert part in captured.out
    rows = [line.split() for line in captured.out.splitlines()]
    shown = {row[0]: row[1:] for row in rows if row[:1] in (["conv"], ["agreement"])}
    assert shown["conv"][:3] == ["fine-tuned", "0.444", "0.444"]
    assert shown["agreement"][:3] == ["fine-tuned", "0.555", "0.555"]
