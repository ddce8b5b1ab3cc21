from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure

from lightning_sim import loggers as adapters
from lightning_sim.loggers import finish_loggers, log_figures, setup_loggers

from .runs import HOSTILE, example_history, files_below


class PlainLogger(Logger):
    """The least that Lightning accepts, with an experiment to be named by a test."""

    name = "plain"
    version = 0
    run_id = "run7"

    def __init__(self, experiment: Any = None) -> None:
        super().__init__()
        self.experiment = experiment

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class MLflowClient:
    """The signature of ``mlflow.MlflowClient.log_figure``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_figure(self, run_id: str, figure: Figure, artifact_file: str, *, save_kwargs: Any = None) -> None:
        self.calls.append((run_id, len(figure.axes), artifact_file))


class CometExperiment:
    """The signature of ``comet_ml.CometExperiment.log_figure``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_figure(
        self, figure_name: Any = None, figure: Any = None, overwrite: bool = False, step: int | None = None
    ) -> None:
        self.calls.append((figure_name, len(figure.axes), step))


class ImageLogger(PlainLogger):
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.experiment.append((key, images, step))


def two_panels() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots(1, 2)
    return figure


def test_mlflow_gets_a_file_per_step_in_a_harmless_place() -> None:
    client = MLflowClient()
    log_figures([PlainLogger(client)], dict.fromkeys(("similarity/cka", *HOSTILE), two_panels), 12)
    assert client.calls[0] == ("run7", 2, "similarity/cka/step_00000012.png")
    places = [Path(place) for _, _, place in client.calls]
    assert len(places) == 1 + len(HOSTILE)
    assert not any(place.is_absolute() or ".." in place.parts for place in places)
    assert not any(set(str(place)) & set('<>$\\"\n') for place in places)


def test_comet_gets_name_and_step() -> None:
    experiment = CometExperiment()
    log_figures([PlainLogger(experiment)], {"similarity/cka": two_panels}, 12)
    assert experiment.calls == [("similarity/cka", 2, 12)]


def test_a_logger_with_log_image_gets_pixels() -> None:
    calls: list[Any] = []
    log_figures([ImageLogger(calls)], {"similarity/cka": two_panels}, 12)
    ((key, images, step),) = calls
    assert (key, step) == ("similarity/cka", 12)
    assert (images[0].shape, images[0].dtype) == ((50, 100, 3), np.uint8)


def test_without_a_logger_that_takes_figures_none_is_made(tmp_path: Path) -> None:
    def never() -> Figure:
        raise AssertionError("a figure was made")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_figures([PlainLogger(), CSVLogger(tmp_path), DummyLogger()], {"similarity/cka": never}, 1)
        log_figures([], {"similarity/cka": never}, 1)
        log_figures([TensorBoardLogger(tmp_path)], {}, 1)


def test_each_figure_is_made_once_for_all_loggers_and_cleared(tmp_path: Path) -> None:
    made: list[Figure] = []

    def make() -> Figure:
        made.append(two_panels())
        return made[-1]

    client, experiment = MLflowClient(), CometExperiment()
    tensorboard = TensorBoardLogger(tmp_path)
    log_figures([PlainLogger(client), PlainLogger(experiment), tensorboard], {"similarity/cka": make}, 1)
    tensorboard.finalize("success")
    assert (len(made), len(client.calls), len(experiment.calls)) == (1, 1, 1)
    assert made[0].axes == []


def test_a_csv_logger_that_was_not_used_yet_keeps_its_earlier_file(tmp_path: Path) -> None:
    history = example_history()
    earlier = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("epoch,step\n")
    logger = CSVLogger(tmp_path, version=0)
    setup_loggers([logger], history.keys, history)
    log_figures([logger], {"similarity/cka": two_panels}, 1)
    finish_loggers([logger], history)
    assert earlier.read_text() == "epoch,step\n"


def test_a_logger_that_raises_is_reported_once_and_the_others_get_their_figures() -> None:
    class Broken(CometExperiment):
        def log_figure(self, figure_name: Any = None, figure: Any = None, **kwargs: Any) -> None:
            raise ConnectionError("no route to host")

    class OtherBroken(PlainLogger):
        pass

    good = CometExperiment()
    loggers = [PlainLogger(Broken()), OtherBroken(Broken()), PlainLogger(good)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            log_figures(loggers, {"similarity/cka": two_panels}, step)
    assert [str(warning.message) for warning in caught] == [
        f"{name} failed and is not reported again; training goes on: ConnectionError: no route to host"
        for name in ("PlainLogger", "OtherBroken")
    ]
    assert [step for _, _, step in good.calls] == [0, 1, 2]


def test_a_figure_that_cannot_be_made_is_reported_once_and_the_others_are_logged() -> None:
    def broken() -> Figure:
        raise ZeroDivisionError("no layers")

    experiment = CometExperiment()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            log_figures([PlainLogger(experiment)], {"bad": broken, "good": two_panels}, step)
    assert [str(w.message) for w in caught] == [
        "The figure 'bad' could not be made: ZeroDivisionError: no layers"
    ]
    assert [name for name, _, _ in experiment.calls] == ["good", "good"]


def test_without_matplotlib_one_warning_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = example_history().matrix("cka")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    adapters._warn_once.cache_clear()
    experiment = CometExperiment()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            figures = {"a": lambda: matrix.plot(), "b": lambda: matrix.plot()}
            log_figures([PlainLogger(experiment)], figures, step)
    (warning,) = caught
    assert "pip install 'lightning-sim[plot]'" in str(warning.message)
    assert experiment.calls == []


def test_ranks_other_than_zero_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    history = example_history()
    experiment = CometExperiment()
    loggers = [PlainLogger(experiment), TensorBoardLogger(tmp_path)]
    setup_loggers(loggers, history.keys, history)
    log_figures(loggers, {"similarity/cka": two_panels}, 1)
    finish_loggers(loggers, history)
    assert experiment.calls == []
    assert files_below(tmp_path) == set()
