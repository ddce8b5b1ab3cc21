"""What a rank does that fails where the others wait for it, and what all of them find alike."""

import pytest
import torch
import torch.distributed as dist

from lightning_sim.probe import LostRanksError, Snapshot
from lightning_sim.probe.ranks import add_ranks, failing_together
from lightning_sim.sketch import Sketch

CPU = torch.device("cpu")


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_that_is_gone_is_no_failed_measurement():
    with pytest.raises(LostRanksError, match="lost the other ranks"), failing_together(2, CPU):
        pass


@pytest.mark.usefixtures("group")
def test_what_fails_on_one_rank_while_the_others_wait_ends_the_training():
    def no_memory():
        raise MemoryError("of this rank")

    with pytest.raises(LostRanksError, match="MemoryError: of this rank"):
        add_ranks(Snapshot(), ["layer"], ["features"], no_memory, CPU, None)


@pytest.mark.usefixtures("group")
def test_what_every_rank_finds_alike_is_a_failed_measurement(monkeypatch):
    sketch = Sketch(16, 16)
    sketch.update(torch.ones(2, 3), torch.arange(2))

    def gather(gathered, table, group=None):
        gathered[0].copy_(table)
        wider = table.clone()
        wider[:, 0] += 1
        gathered.append(wider)

    monkeypatch.setattr(dist, "all_gather", gather)
    with pytest.raises(ValueError, match=r"different widths, \[3, 4\]"):
        add_ranks(Snapshot({"features": {"layer": sketch}}), ["layer"], ["features"], Sketch, CPU, None)


@pytest.mark.usefixtures("group")
def test_a_failure_is_raised_once_all_ranks_know_of_it():
    with failing_together(2, CPU):
        pass
    with pytest.raises(KeyError, match="mine"), failing_together(2, CPU):
        raise KeyError("mine")
