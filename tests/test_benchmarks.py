"""That the benchmarks run and say what they measured; nothing here depends on how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from tests.benchmarks.__main__ import PIECES, main
from tests.benchmarks.contenders import OURS, PEERS, contenders
from tests.benchmarks.exact import exact_matrix, features_of
from tests.benchmarks.figure import Figure, ratio_figure, table
from tests.benchmarks.live_bytes import peak_bytes
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import interleaved
from tests.benchmarks.whole import Stopwatch
from tests.benchmarks.workloads import Workload, workload
from tests.sketch import exact

TINY = Settings(torch.device("cpu"), "tiny")


class FakeClock:
    """Time that only passes when something says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float):
        durations = iter(seconds)

        def run(*_: object) -> None:
            self.now += next(durations)

        return run


def test_every_figure_is_in_the_file_with_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    main(["--tiny", "--only", "fold", "features", "finished", "--out", str(path)])
    content = json.loads(path.read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert content["size"] == "tiny"
    names = [figure["name"] for figure in content["figures"]]
    for part in ("sketch update", "ResNet-18", "MLP", "transformer", "CKA of", "NBS of"):
        assert any(part in name for name in names), part
    printed = capsys.readouterr().out
    for figure in content["figures"]:
        assert figure["name"] in printed
        assert figure["value"] > 0
        assert figure["met"] in ((None,) if figure["bar"] is None else (True, False))
    update = content["figures"][0]["seconds"]
    assert len(update["copy_"]) == len(update["update"]) == TINY.rounds


def test_the_whole_measurement_comes_first_and_says_what_its_parts_take() -> None:
    assert next(iter(PIECES)) == "whole"
    figure, start = PIECES["whole"](TINY)
    parts = ("pass", "cka", "nbs", "wcka", "agreement", "jsd", "rank_correlation", "figures", "logging", "record")
    assert set(figure.seconds) == {"bare", "other", *parts}
    assert all(f"{part} " in figure.note for part in parts)
    assert {len(rounds) for rounds in figure.seconds.values()} == {TINY.rounds}
    rounds = zip(figure.seconds.pop("bare"), *figure.seconds.values(), strict=True)
    assert figure.spread == pytest.approx(sorted(sum(parts) / bare for bare, *parts in rounds))
    assert start.value is not None
    assert start.value > 1  # it holds the reference's pass


def test_parts_of_parts_count_once() -> None:
    now = FakeClock()
    with mock.patch("time.perf_counter", now):
        watch = Stopwatch()
        inner = watch.timed(lambda name: name, now.taking(2))
        outer = watch.timed("outer", lambda: (now.taking(1)(), inner("inner")))
        outer()
    assert watch.rounds == [{"outer": 1, "inner": 2}]


def test_what_takes_longer_has_a_ratio_above_one() -> None:
    clock = FakeClock()
    runs = {"quick": clock.taking(9, 1, 2, 1), "slow": clock.taking(9, 3, 4, 4)}
    rounds = interleaved(runs, 3, clock=clock)
    assert rounds.seconds == {"quick": [1, 2, 1], "slow": [3, 4, 4]}  # without the warm-up's 9
    figure = ratio_figure("slow / quick", rounds, "slow", "quick", bar=2.5)
    assert figure.value == 3  # the median of 3, 2 and 4, not the ratio of the medians, 4
    assert figure.spread == (2, 4)
    assert figure.met is False
    assert ratio_figure("quick / slow", rounds, "quick", "slow", bar=0.5).met is True


def test_contenders_take_turns() -> None:
    order: list[str] = []
    interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2, warm_up=1)
    assert order == list("ababab")


def test_table_says_which_bars_are_met() -> None:
    figures = [
        Figure("low enough", 1.0, bar=2.0),
        Figure("too low", 1.0, bar=2.0, at_least=True),
        Figure("unknown", None, bar=2.0, note="not installed"),
    ]
    lines = table(figures).splitlines()[2:]
    assert [line.split("  ")[-1].strip() for line in lines] == ["yes", "NO", "not installed"]


def test_exact_matrix_is_the_definition_in_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(24, width, generator=generator) + 2 for width in (5, 9)]
    columns = [rows[0] @ torch.randn(5, 4, generator=generator), torch.randn(24, 3, generator=generator)]
    expected = torch.tensor([[exact.cka_unbiased(x.numpy(), y.numpy()) for y in columns] for x in rows])
    torch.testing.assert_close(exact_matrix(rows, columns), expected, rtol=0, atol=1e-12)
    # In batches, HSIC is summed before the ratio is taken.
    parts = [slice(0, 12), slice(12, 24)]
    x, y = (z.double().numpy() for z in (rows[0], columns[0]))
    sums = [
        sum(exact.hsic_unbiased(exact.centered(a[part]), exact.centered(b[part])) for part in parts)
        for a, b in ((x, y), (x, x), (y, y))
    ]
    expected_ratio = sums[0] / (sums[1] * sums[2]) ** 0.5
    assert float(exact_matrix(rows, columns, 12)[0, 0]) == pytest.approx(expected_ratio, abs=1e-12)


def test_our_matrix_is_near_the_exact_one() -> None:
    load = workload("MLP", TINY)
    changed = load.changed()
    ours = next(contender for contender in contenders() if contender.name == OURS)
    truth = exact_matrix(features_of(load, changed), features_of(load, load.network))
    assert truth.shape == (4, 4)
    assert float(truth.max() - truth.min()) > 0.01  # layers that differ, or nothing would be compared
    torch.testing.assert_close(ours.prepare(load, changed)().double(), truth, rtol=0, atol=1e-5)


def test_peers_are_known_by_their_names_and_need_not_be_there() -> None:
    assert set(PEERS) == {"pytorch-cka", "torch-cka", "ckatorch"}
    assert [contender.name for contender in contenders()] == [OURS, *PEERS]


def test_live_bytes_are_those_held_at_once() -> None:
    def run() -> None:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept = kept + torch.ones(1000)  # at most the old sum, the ones and the new sum

    assert peak_bytes(run) == 3 * 4000


def test_all_batches_hold_all_inputs_in_order() -> None:
    load = Workload("inputs", nn.Identity(), torch.arange(10.0)[:, None], batch_size=4)
    batches = [inputs for _, (inputs,) in load.probe().batches()]
    assert [len(inputs) for inputs in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), load.inputs)
