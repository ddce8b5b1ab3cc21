from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_sim.loggers import finish_loggers, log_figures, setup_loggers
from lightning_sim.record import SimilarityHistory

from .runs import HOSTILE, example_history, log_scalars

LAYERS = tuple(f"block.{number}" for number in range(12)) + HOSTILE


@pytest.fixture(scope="session")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SimilarityHistory, Path]]:
    """A history and the directory to which W&B, offline, wrote it in a run of its own."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    history = example_history(30, LAYERS)
    outer = tmp_path_factory.mktemp("outer")
    directory = outer / "a" / "b"
    directory.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        for kind in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(directory / kind.lower()))
        logger = WandbLogger(project="tests", offline=True, save_dir=directory)
        setup_loggers([logger], history.keys, history)
        log_scalars(logger, history)
        for measurement in history.measurements[:2]:
            figures = {
                "similarity/matrix/cka": lambda: history.matrix("cka").plot(),
                "similarity/../../../../x": lambda: history.matrix("cka").plot(),
            }
            log_figures([logger], figures, measurement.step)
        finish_loggers([logger], history)
        wandb.finish()
    yield history, directory
    assert all(path.name == "a" for path in outer.iterdir())
