"""One monitored run: what is compared, what was measured so far, the record of it, and what is said of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sim.kept_reference import read_reference
from lightning_sim.measures.calling import Undefined
from lightning_sim.probe import isolated_random_state
from lightning_sim.probe.ranks import failing_together
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.run_directory import RunDirectory
from lightning_sim.session import Session
from lightning_sim.settings import Settings
from lightning_sim.sketch import SketchSet

__all__ = ["Bar", "MonitoredRun"]

Bar = Callable[[int], AbstractContextManager[Callable[[], None]]]


class MonitoredRun:
    """Measures one network whenever it is told to, and keeps what it finds in memory and on disk.

    Args:
        settings: what is compared, and how.
        runner: runs networks over the probe.
        network: the monitored one.
        before: the `state_dict` of the run that is continued; empty for a new one.
        beside: directories where the files of that run may lie by now.
        metadata: of the run, for the record.
        bar: ``bar(total)`` shows progress over so many batches, and yields what is called after each.
        warn: is told what has failed.

    Attributes:
        history: what was measured.
        newest_sketches: the file that the last measurement has saved, if any.

    Raises:
        OtherComparisonError: where `before` compared something else.
        ValueError: for what cannot work, with what would.
    """

    def __init__(
        self,
        settings: Settings,
        runner: ProbeRunner,
        network: nn.Module,
        *,
        before: Mapping[str, Any],
        beside: Iterable[Path] = (),
        metadata: Mapping[str, Any],
        bar: Bar,
        warn: Callable[[str], None],
    ) -> None:
        self._settings, self._bar, self._warn = settings, bar, warn
        self._directory: RunDirectory | None = None
        self._run_id = before.get("run_id")
        self.newest_sketches: Path | None = None
        self._noted = False
        self._told: set[tuple[str, str]] = set()
        self._kept: dict[str, str] | None = None
        with failing_together(runner.world_size, runner.device):
            restored = _with_reference(before.get("session"), beside)
        with isolated_random_state(settings.seed):
            self._session = Session(settings, runner)
            with bar(self._session.num_batches()) as advance:
                self._session.start(network, advance, restored)
        self.history = SimilarityHistory.from_state(before["history"]) if before else SimilarityHistory({})
        self.history.metadata.update({**self._session.describe(), **metadata})

    @property
    def directory(self) -> Path | None:
        """Where the record lies; None where there is none, or before there is anything to write."""
        return None if self._directory is None else self._directory.path

    def keys(self) -> list[Key]:
        """What every measurement gives values for."""
        return self._session.keys()

    def record_in(self, wanted: Path) -> None:
        """Keep a record in this directory, or beside it where another run's is there."""
        self._directory = RunDirectory(wanted, self.history, self._run_id, self._warn)

    def measure(self, network: nn.Module, epoch: int, step: int, *, save_every: int) -> Measurement:
        """Compare the network with the reference now, and keep what is found.

        Args:
            network: the monitored one.
            epoch: of the training.
            step: of the training.
            save_every: save the sketches of every n-th measurement; 0 for none.

        Raises:
            RuntimeError: where something could not be measured, if the settings say so.
        """
        self.newest_sketches = None
        save = self._save if save_every and not (len(self.history) + 1) % save_every else None
        with isolated_random_state(self._settings.seed), self._bar(self._session.num_batches()) as advance:
            measurement, problems = self._session.measure(network, epoch, step, advance=advance, save=save)
        self.history.append(measurement)
        if self._directory is not None:
            self._directory.append(measurement)
        self._tell(problems)
        if measurement.notes and not self._noted:
            self._noted = True
            self._warn("; ".join(f"{key.title} of {key.layer} {note}" for key, note in measurement.notes.items()))
        return measurement

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors: the history, and the reference where it could not be made again.

        Of a reference that stays the same it is where the file lies, which this writes once.
        """
        session = self._session.state_dict()
        if self._directory is not None and self._settings.reference.kind == "init":
            if self._kept is None or not Path(self._kept["file"]).is_file():  # which somebody may have removed
                self._kept = self._directory.keep(session["reference"])
            session["reference"] = self._kept or session["reference"]
        return {
            "history": self.history.to_state(),
            "session": session,
            "run_id": None if self._directory is None else self._directory.run_id,
        }

    def close(self) -> None:
        """Let whoever continues this run continue its record."""
        if self._directory is not None:
            self._directory.close()

    def _save(self, sketches: SketchSet) -> None:
        if self._directory is not None:  # which the first rank alone has
            self.newest_sketches = self._directory.save(sketches)

    def _tell(self, problems: Mapping[Key, str]) -> None:
        """Say each problem with all that it is about, the layers or else the measures, that it was not said of yet."""
        about: dict[str, dict[str, None]] = {}
        for key, problem in problems.items():
            under = f" ({key.condition})" if key.layer and key.condition else ""
            about.setdefault(problem, {})[f"{key.layer or key.name}{under}"] = None
        for problem, names in about.items():
            if self._settings.on_error == "raise" and not isinstance(problem, Undefined):
                raise RuntimeError(f"could not measure: {', '.join(names)} {problem}")
            if new := [name for name in names if (name, problem) not in self._told]:
                self._told.update((name, problem) for name in new)
                self._warn(f"{', '.join(new)} {problem}; its similarity is logged as NaN")


def _with_reference(session: Mapping[str, Any] | None, beside: Iterable[Path]) -> Mapping[str, Any] | None:
    """A session's state with the reference itself, where it says in which file that is."""
    reference = (session or {}).get("reference") or {}
    if session is None or "sha256" not in reference:
        return session
    return {**session, "reference": read_reference(reference, beside)}
