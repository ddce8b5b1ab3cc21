"""Numbers under a condition of the samples, through training, figures, warnings, record and checkpoint."""

import math

import numpy as np
import pytest

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.callbacks.reporting import figures_of
from lightning_sim.measures import Key, Measure, Scale, Values
from lightning_sim.record import SimilarityHistory, SimilarityMatrix

from .training import fit


class Clouded(Measure):
    """One layer, its matrix, and the outputs, under a condition."""

    name, scale, needs = "clouded", Scale(low=0, high=1), frozenset()

    def __init__(self, condition):
        self.condition = condition

    def keys(self, pairs):
        return [Key(self.name, "features", "net.0", self.condition), Key(self.name, condition=self.condition)]

    def compare(self, mine, theirs, pairs):
        of_layer, of_outputs = self.keys(pairs)
        found = Values()
        found.add(of_layer, 0.5)
        found.add(of_outputs, math.nan, "is undefined there")
        found.matrices.append(SimilarityMatrix(self.name, "features", ("net.0",), ("net.0",), np.ones((1, 1)), "fog"))
        return found


def test_the_condition_is_said_wherever_its_numbers_are(tmp_path):
    monitor = SimilarityMonitor(measures=Clouded("fog"), layers="net.0", num_samples=40, before_training=False)
    with pytest.warns(UserWarning, match="clouded/fog is undefined there"):
        fit([monitor], root=tmp_path, epochs=1)
    ((name, make),) = figures_of(monitor.history, "similarity", "epoch 0").items()
    assert (name, make.args[0].title) == ("similarity/matrix/clouded/features/fog", "clouded, features, fog, epoch 0")
    restored = SimilarityHistory.from_state(monitor.history.to_state())
    for history in (restored, read_history(monitor.directory)):
        assert history == monitor.history
        assert history.trajectory("clouded", layer="net.0", condition="fog").values.tolist() == [0.5]
        assert history.matrix("clouded", condition="fog").condition == "fog"


def test_a_condition_that_names_would_not_give_back_is_refused_before_training(tmp_path):
    monitor = SimilarityMonitor(measures=Clouded("thick/fog"), layers="net.0", num_samples=40)
    with pytest.raises(ValueError, match=r"condition of a key must not hold '/'.*'thick/fog'"):
        fit([monitor], root=tmp_path, epochs=1)
    assert not len(monitor.history)
