import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks.training import CONVOLUTIONS, fit


def test_correlations_are_logged_from_the_fourth_measurement_on_and_follow_from_the_record(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version=0), CSVLogger(tmp_path / "csv")]
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka", "jsd"))
    trainer, _ = fit([monitor], epochs=5, root=tmp_path, logger=loggers)
    cka, jsd = monitor.history.trajectory("cka", layer="net.3"), monitor.history.trajectory("jsd")
    events = EventAccumulator(trainer.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "cka_jsd" in tag]
    assert sorted(tags) == [f"similarity/cka_jsd_pearson/features/{layer}" for layer in CONVOLUTIONS]
    logged = events.Scalars("similarity/cka_jsd_pearson/features/net.3")
    assert [event.step for event in logged] == cka.steps[3:].tolist()
    expected = [stats.pearsonr(cka.values[:count], jsd.values[:count]).statistic for count in (4, 5)]
    np.testing.assert_allclose([event.value for event in logged], expected, atol=1e-5)
    assert float(trainer.callback_metrics["similarity/cka_jsd_pearson/features/net.3"]) == pytest.approx(expected[-1])
    assert monitor.history.correlation("cka", "jsd", layer="net.3").value == pytest.approx(expected[-1])
    for source, place in (("record", 0), ("tensorboard", 0), ("csv", 1)):
        assert read_history(loggers[place].log_dir, source=source).measures == ["cka", "jsd"]
    images = events.Images("similarity/correlation/cka_jsd/features")
    assert [image.step for image in images] == cka.steps[3:].tolist()
