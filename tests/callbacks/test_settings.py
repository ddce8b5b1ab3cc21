"""What a monitor takes for its arguments; what it refuses is in tests/test_misuses.py."""

import numpy as np
import pytest
from torch.utils.data import IterableDataset

from lightning_sim import SimilarityMonitor

from .training import digits


def names(measures):
    return [measure.name for measure in measures]


def test_one_string_is_one_name():
    settings = SimilarityMonitor(measures="cka", representations="features", layers="conv1").settings
    assert names(settings.measures) == ["cka"]
    assert settings.representations == ("features",)
    assert settings.layers == ("conv1",)
    assert SimilarityMonitor(layers="auto").settings.layers == "auto"


def test_names_come_once_and_in_an_order_that_is_the_same_on_every_rank():
    assert names(SimilarityMonitor(measures=["jsd", "cka", "jsd"]).settings.measures) == ["jsd", "cka"]
    assert names(SimilarityMonitor(measures={"nbs", "jsd", "cka"}).settings.measures) == ["cka", "jsd", "nbs"]
    assert SimilarityMonitor(layers=(name for name in ("b", "a"))).settings.layers == ("b", "a")


def test_numbers_of_numpy_are_numbers():
    monitor = SimilarityMonitor(
        num_samples=np.int64(100),
        num_buckets=np.int32(512),
        num_projections=np.uint16(64),
        every_n_epochs=np.int64(2),
        save_sketches=np.int64(3),
        seed=np.uint32(2**32 - 1),
        beta=np.float32(0.25),
    )
    settings = monitor.settings
    assert (settings.num_samples, settings.num_buckets, settings.num_projections) == (100, 512, 64)
    assert (monitor.every_n_epochs, monitor.save_sketches, settings.seed, settings.beta) == (2, 3, 2**32 - 1, 0.25)
    taken = (settings.num_samples, settings.seed, monitor.every_n_epochs, monitor.save_sketches)
    assert {type(number) for number in taken} == {int}


def test_a_monitor_can_save_after_every_measurement_or_never():
    assert SimilarityMonitor(save_sketches=True).save_sketches == 1
    assert SimilarityMonitor(save_sketches=False).save_sketches == 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(digits(0, 8))


@pytest.mark.parametrize("probe", [None, [(1, 0)], digits(0, 8), Stream()])
def test_sources_of_samples(probe):
    assert SimilarityMonitor(probe=probe).settings.probe is probe
