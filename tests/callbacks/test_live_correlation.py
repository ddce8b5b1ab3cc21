import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.correlations import is_correlation
from tests.callbacks.training import CONVOLUTIONS, fit


def test_correlations_reach_trainer_record_and_loggers_from_the_fourth_measurement_on(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version=0), CSVLogger(tmp_path / "csv")]
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka", "jsd"))
    trainer, _ = fit([monitor], epochs=5, root=tmp_path, logger=loggers)
    found = [[name for name in m.values if is_correlation(name)] for m in monitor.history.measurements]
    assert [len(names) for names in found] == [0, 0, 0, 14, 14]
    cka, jsd = monitor.history.trajectory("cka", layer="net.3"), monitor.history.trajectory("jsd")
    newest = monitor.history.measurements[-1].values
    for count, measurement in ((4, monitor.history.measurements[3]), (5, monitor.history.measurements[4])):
        expected = stats.pearsonr(cka.values[:count], jsd.values[:count]).statistic
        assert measurement.values["cka_jsd_pearson/features/net.3"] == pytest.approx(expected, abs=1e-5)
    for name in found[-1]:
        assert float(trainer.callback_metrics[f"similarity/{name}"]) == newest[name], name
    steps = cka.steps[3:].tolist()
    for source, place in (("record", 0), ("tensorboard", 0), ("csv", 1)):
        trajectory = read_history(loggers[place].log_dir, source=source).trajectory("cka_jsd_slope", layer="net.3")
        assert trajectory.steps.tolist() == steps
        np.testing.assert_array_equal(trajectory.values[-1], newest["cka_jsd_slope/features/net.3"])
    images = EventAccumulator(trainer.log_dir, size_guidance={"images": 0}).Reload()
    assert [image.step for image in images.Images("similarity/correlation/cka_jsd/features")] == steps
