"""Strategies under which a monitor could not measure."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from lightning_sim import SimilarityMonitor
from tests.callbacks.training import fit


@pytest.mark.parametrize("sharding", [FSDPStrategy, DeepSpeedStrategy])
def test_sharded_strategies_and_what_is_derived_from_them_are_refused(tmp_path, monkeypatch, sharding):
    class Sharded(Callback):
        def on_train_start(self, trainer, pl_module):
            mine = type("MyStrategy", (type(trainer.strategy), sharding), {"teardown": lambda self: None})
            monkeypatch.setattr(trainer.strategy, "__class__", mine)

    with pytest.raises(ValueError, match=r"MyStrategy.*ModelParallelStrategy.*strategy=\"ddp\""):
        fit([Sharded(), SimilarityMonitor()], root=tmp_path)
