import io
import re
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress
from rich.console import Console

from lightning_sim.callbacks.progress import measuring_bar


def trainer_with(bar, *, rank=0):
    return SimpleNamespace(progress_bar_callback=bar, is_global_zero=rank == 0)


def test_a_rich_bar_moves_while_it_measures_and_is_gone_afterwards():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = RichProgressBar()
    bar.progress = CustomProgress(console=console, auto_refresh=True, refresh_per_second=200)
    bar.progress.start()
    try:
        with measuring_bar(trainer_with(bar), "similarity", 3) as advance:
            for share in ("33%", "67%", "100%"):
                advance()
                waited = time.monotonic() + 10
                while share not in console.file.getvalue() and time.monotonic() < waited:
                    time.sleep(0.005)  # drawn by a thread of its own
                assert share in console.file.getvalue()
            assert [task.description for task in bar.progress.tasks] == ["measuring similarity"]
        assert not bar.progress.tasks
    finally:
        bar.progress.stop()


def test_a_tqdm_bar_moves_and_is_gone_afterwards(capsys):
    with measuring_bar(trainer_with(TQDMProgressBar()), "similarity", 2) as advance:
        advance()
        time.sleep(0.15)  # tqdm draws at most ten times a second
        advance()
    drawn = capsys.readouterr().err
    assert "Measuring similarity:   0%" in drawn
    assert "2/2" in drawn
    assert re.search("\r {20,}", drawn.rpartition("2/2")[2])  # overwritten by spaces


@pytest.mark.parametrize(("bar", "rank"), [(None, 0), (TQDMProgressBar(), 1), (RichProgressBar(), 0)])
def test_there_is_no_bar_where_lightning_shows_none(capsys, bar, rank):
    with measuring_bar(trainer_with(bar, rank=rank), "similarity", 1) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
