"""Which figures a training gives to its loggers, and when."""

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sim import SimilarityMonitor
from lightning_sim.callbacks import reporting
from tests.callbacks.training import CONVOLUTIONS, fit


@pytest.mark.parametrize(("figures", "drawn"), [(True, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (False, [])])
def test_figures_come_with_every_or_every_nth_measurement_and_the_last(tmp_path, figures, drawn, monkeypatch):
    titles = []
    of = reporting.figures_of
    monkeypatch.setattr(reporting, "figures_of", lambda *args: (titles.append(args[-1]), of(*args))[1])
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka", "jsd"), figures=figures)
    trainer, _ = fit([monitor], epochs=4, root=tmp_path, logger=TensorBoardLogger(tmp_path, version=0))
    events = EventAccumulator(trainer.log_dir, size_guidance={"images": 0}).Reload()
    steps = [measurement.step for measurement in monitor.history.measurements]
    tags = {"similarity/correlation/cka_jsd/features": [4], "similarity/matrix/cka/features": drawn} if drawn else {}
    assert sorted(events.Tags()["images"]) == sorted(tags)
    for tag, expected in tags.items():
        assert [image.step for image in events.Images(tag)] == [steps[index] for index in expected]
    assert titles == [["start", "epoch 0", "epoch 1", "epoch 2", "epoch 3"][index] for index in drawn]


@pytest.mark.parametrize("figures", [-1, 1.5, "yes"])
def test_what_says_no_number_of_measurements_is_refused(figures):
    with pytest.raises(ValueError, match=r"`figures` must be True, False or every how many measurements, got"):
        SimilarityMonitor(figures=figures)
