"""The script for the lowest versions takes all of those that are declared."""

import subprocess
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it along
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


def test_every_lower_bound_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [bounds for extra, bounds in project["optional-dependencies"].items() if extra != "peers"]
    declared = {bound.replace(">=", "==") for bounds in [project["dependencies"], *extras] for bound in bounds}
    command = [ROOT / ".ci" / "lowest", "--constraints"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(printed) == {bound for bound in declared if not bound.startswith("lightning-sim[")}
    assert len(printed) == len(set(printed)) > 15
