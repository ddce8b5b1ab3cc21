import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_sim import SimilarityMonitor, read_history
from tests.callbacks.training import CONVOLUTIONS, fit


def test_correlations_are_logged_from_the_fourth_measurement_on_and_follow_from_the_record(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version=0), CSVLogger(tmp_path / "csv")]
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=("cka", "jsd"), before_training=False)
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
    assert [image.step for image in images] == cka.steps[-1:].tolist()  # of all measurements, at the end


def test_the_mean_over_the_layers_is_one_number_that_callbacks_can_look_at(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version=0), CSVLogger(tmp_path / "csv")]
    options = {"measures": ("cka", "nbs", "jsd"), "representations": ("features", "gradients")}
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, **options, before_training=False)
    stopping = EarlyStopping("similarity/cka", mode="max", stopping_threshold=-1.0)
    trainer, _ = fit([monitor, stopping], epochs=5, root=tmp_path, logger=loggers)
    assert len(monitor.history) == 1  # the first value is above the threshold
    last = monitor.history.measurements[-1].values
    for measure in ("cka", "nbs"):
        expected = np.mean([last[f"{measure}/features/{layer}"] for layer in CONVOLUTIONS])
        assert float(trainer.callback_metrics[f"similarity/{measure}"]) == pytest.approx(expected, abs=1e-6)
    for source, place in (("record", 0), ("tensorboard", 0), ("csv", 1)):
        held = read_history(loggers[place].log_dir, source=source)
        assert sorted(held.names) == sorted(monitor.history.names)
    with pytest.raises(ValueError, match="'similarity/wcka', which this monitor does not log"):
        fit([SimilarityMonitor(**options, before_training=False), EarlyStopping("similarity/wcka")], root=tmp_path)


def test_sixteen_layers_do_not_drown_a_dashboard(tmp_path):
    network = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(16)))
    monitor = SimilarityMonitor(representations=("features", "gradients"), num_samples=32)

    class Deep(BoringModel):
        def __init__(self):
            super().__init__()
            self.layer = network

    trainer = Trainer(
        max_epochs=5,
        callbacks=[monitor],
        logger=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Deep())
    logged = [name for name in trainer.callback_metrics if name.startswith("similarity/")]
    assert len(monitor.history.layers) == 16
    measures_of_layers = 5  # CKA and NBS of features and gradients, and wCKA
    assert 16 * measures_of_layers < len(logged) <= 16 * measures_of_layers + 16 + 10
