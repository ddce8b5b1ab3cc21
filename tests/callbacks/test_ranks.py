"""What several processes must not do to each other, in real ones: fall silent, or change buffers."""

import pytest
import torch

from tests.callbacks.launching import forked, ranks


@pytest.mark.parametrize("kind", ["killed", "killed in scalars"])
def test_a_training_whose_other_process_was_killed_ends_with_an_error(tmp_path, kind):
    with ranks(tmp_path, 2, 14, 1, kind) as processes:
        statuses = [process.ended() for process in processes]
    errors = (tmp_path / "errors-0.txt").read_text()
    assert statuses == [1, -9], errors[-2000:]
    assert "LostRanksError: a measurement lost the other ranks" in errors


def test_buffers_that_evaluation_moves_are_as_without_a_monitor_on_every_rank(tmp_path):
    for kind in ("moving", "unmonitored"):
        (tmp_path / kind).mkdir()
        forked(tmp_path / kind, 2, 101, epochs=1, kind=kind)
    for rank in (0, 1):
        monitored, plain = (torch.load(tmp_path / kind / f"rank-{rank}.pt") for kind in ("moving", "unmonitored"))
        assert monitored["mean"] > 0.1  # on its way to 0.3, the mean of the pixels
        for name, value in plain.items():
            assert torch.equal(monitored[name], value), name
