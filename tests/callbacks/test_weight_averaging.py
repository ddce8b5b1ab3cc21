"""Whose weights are measured where a callback averages them."""

import copy

import lightning
import pytest
from lightning.pytorch import Callback, callbacks

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import digits, features, fit, new_network
from tests.sketch import exact

if not hasattr(callbacks, "WeightAveraging"):
    pytest.skip(f"lightning {lightning.__version__} has no WeightAveraging; 2.6 has", allow_module_level=True)


class OwnMonitor(SimilarityMonitor):
    pass


class OwnAveraging(callbacks.EMAWeightAveraging):
    pass


@pytest.mark.parametrize("kinds", [(SimilarityMonitor, callbacks.WeightAveraging), (OwnMonitor, OwnAveraging)])
@pytest.mark.parametrize("first", ["monitor", "average"])
def test_whose_weights_were_measured_under_weight_averaging(tmp_path, first, kinds):
    monitor, averaging = kinds[0](layers=["net.0"], measures=("cka",)), kinds[1]()
    both = [monitor, averaging] if first == "monitor" else [averaging, monitor]
    kept = []

    class Keep(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            kept.append(copy.deepcopy(pl_module.state_dict()))

    position = both.index(monitor)
    fit([*both[: position + 1], Keep(), *both[position + 1 :]], epochs=2, root=tmp_path)
    assert monitor.history.metadata["weights"] == ("average" if first == "monitor" else "current")
    measured = new_network()
    measured.load_state_dict(kept[-1])
    value = exact.cka_unbiased(*(features(net, "net.0", digits(300, 420)) for net in (measured, new_network())))
    assert monitor.history.trajectory("cka", layer="net.0").values[-1] == pytest.approx(value, abs=1e-5)


def test_each_of_two_monitors_says_whose_weights_it_measured(tmp_path):
    before, after = SimilarityMonitor(measures=("cka",)), SimilarityMonitor(measures=("cka",), name="after")
    fit([before, callbacks.WeightAveraging(), after], epochs=2, root=tmp_path)
    assert [monitor.history.metadata["weights"] for monitor in (before, after)] == ["average", "current"]
    # Two steps after the start the averages are behind the weights, hence closer to the reference.
    values = [monitor.history.trajectory("cka", layer="net.8").values[-1] for monitor in (before, after)]
    assert values[0] > values[1]
