"""What a monitor takes for its arguments; what it refuses is in tests/test_misuses.py."""

import inspect
import re

import numpy as np
import pytest
from torch.utils.data import IterableDataset

from lightning_sim import SimilarityMonitor

from .training import digits

POSITIONAL = {
    "reference": "previous",
    "probe": [(1, 0)],
    "layers": "conv1",
    "measures": "cka",
    "representations": "gradients",
    "num_samples": 100,
    "num_buckets": 512,
    "num_projections": 64,
    "every_n_epochs": 2,
}


def test_all_but_the_reference_are_given_by_keyword():
    parameters = list(inspect.signature(SimilarityMonitor).parameters.values())
    assert [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY] == ["reference"]
    assert SimilarityMonitor("previous").settings.reference.kind == "previous"


@pytest.mark.parametrize("count", range(2, 10))
def test_positions_still_work_and_warn_at_the_line_of_the_caller(count):
    by_position, by_keyword = list(POSITIONAL.values())[:count], dict(list(POSITIONAL.items())[count:])
    moved = ", ".join(f"{name}=..." for name in list(POSITIONAL)[1:count])
    with pytest.warns(DeprecationWarning, match=rf"^SimilarityMonitor takes by keyword: {re.escape(moved)}$") as caught:
        monitor = SimilarityMonitor(*by_position, **by_keyword)
    assert [warning.filename for warning in caught] == [__file__]
    settings = monitor.settings
    given = {name: getattr(settings, name) for name in POSITIONAL if hasattr(settings, name)}
    given |= {"every_n_epochs": monitor.every_n_epochs, "reference": settings.reference.kind}
    given["measures"] = given["measures"][0].name
    assert given == POSITIONAL | {"layers": ("conv1",), "representations": ("gradients",)}


@pytest.mark.filterwarnings("ignore:SimilarityMonitor takes by keyword:DeprecationWarning")
def test_what_never_was_positional_is_refused_and_so_is_an_argument_given_twice():
    with pytest.raises(TypeError, match="positional"):
        SimilarityMonitor(*POSITIONAL.values(), "biased")
    with pytest.raises(TypeError, match="multiple values for keyword argument 'probe'"):
        SimilarityMonitor("init", [(1, 0)], probe=[(1, 0)])


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
        before_training=False,
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
