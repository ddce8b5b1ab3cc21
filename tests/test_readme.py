"""What the README says, done: its code runs, its commands work, its example is the file in examples/."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lightning_sim.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_there_are_two_set_up_commands_each_of_one_line() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "pip" in line]
    assert commands == [
        "pip install -e '.[demo]' && lightning-sim demo",
        "pip install -e '.[test]' && pytest",
    ]


def test_the_example_is_ten_lines_at_most_and_the_same_in_both_places() -> None:
    assert QUICKSTART in blocks("python")
    assert len([line for line in QUICKSTART.splitlines() if line.strip()]) <= 10


def test_commands_and_code_run_in_the_order_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [part.strip() for block in blocks("sh") for part in re.split(r"&&|\n", block)]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("lightning-sim")]
    assert ["demo"] in ours
    for arguments in ours:
        assert main([*arguments, "--epochs", "1"] if arguments == ["demo"] else arguments) == 0
    assert capsys.readouterr().err == "Wrote report.html\n"  # beside the table, which scripts may read
    assert len(blocks("python")) >= 2
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.search(r"^\[\d+ rows x 16 columns\]$", printed, re.MULTILINE)
    assert "'measure': 'cka'" in printed
    assert (tmp_path / "fine-tuned.png").is_file()
    assert (tmp_path / "report.html").is_file()


def test_tensors_come_from_whatever_device_before_they_are_arrays() -> None:
    examples = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    code = "\n".join((*blocks("python"), *examples))
    assert ".cpu().numpy()" in code
    assert not re.search(r"(?<!\.cpu\(\))\.numpy\(", code)


def test_links_to_files_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert "examples/images/demo.png" in targets
    for target in targets:
        assert (ROOT / target).is_file()
        assert (ROOT / target).stat().st_size < 300_000
