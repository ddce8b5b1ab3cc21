from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sim import SimilarityHistory, read_history
from lightning_sim.demo import Demo, digits_loader, run_demo
from lightning_sim.demo.terminal import meaning
from lightning_sim.record import Measurement
from lightning_sim.views.summary import summarize
from lightning_sim.views.table import summary_table

EPOCHS = 2
LAYERS = ["conv1", "conv2", "conv3", "dense", "classifier"]


@pytest.fixture(scope="module")
def calls() -> list[str]:
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, calls: list[str]) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"), epochs=EPOCHS, seed=3, on_batch=calls.append)


def history(
    cka: dict[str, float], agreement: float = 0.5, epochs: int = 1, name: str = "run"
) -> SimilarityHistory:
    values = {f"cka/features/{layer}": value for layer, value in cka.items()} | {"agreement": agreement}
    return SimilarityHistory({"run": name}, [Measurement(epoch, epoch, values) for epoch in range(epochs)])


def test_digits_are_split_without_loss_and_rotated_like_numpy() -> None:
    digits = load_digits()
    parts = [digits_loader("training", rotated=True).dataset, digits_loader("held-out", rotated=True).dataset]
    samples = [part[index] for part in parts for index in range(len(part))]  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [1347, 450]  # type: ignore[arg-type]
    images = torch.stack([image for image, _ in samples]).squeeze(1).numpy()
    np.testing.assert_array_equal(images, np.rot90(digits.images, axes=(1, 2)).astype("float32") / 16)
    assert [int(label) for _, label in samples] == digits.target.tolist()


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="`part` must be"):
        digits_loader("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("run", ["fine-tuned", "from scratch"])
def test_every_logger_holds_the_numbers_of_the_history(demo: Demo, run: str) -> None:
    directory = demo.directory / run.replace(" ", "-")
    expected = demo.histories[run]
    assert read_history(directory, source="record") == expected
    assert expected.epochs == list(range(EPOCHS))
    assert expected.layers == LAYERS
    for source in ("tensorboard", "csv"):
        found = read_history(directory, source=source)
        assert sorted(found.names) == sorted(expected.names)
        for mine, theirs in zip(expected.measurements, found.measurements, strict=True):
            assert mine.step == theirs.step
            assert theirs.values == pytest.approx(mine.values, rel=1e-6)


def test_both_are_compared_with_the_checkpoint_of_the_reference(demo: Demo) -> None:
    checkpoint = demo.directory / "reference.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert "pytorch-lightning_version" in content
    assert {name.partition(".")[0] for name in content["state_dict"]} == set(LAYERS)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    for run in demo.histories.values():
        assert run.metadata["reference"]["sha256"] == digest
        assert (run.metadata["probe"]["num_samples"], run.metadata["probe"]["choice"]) == (450, "spaced")


def test_fine_tuning_starts_from_the_checkpoint(demo: Demo) -> None:
    tuned, scratch = demo.histories["fine-tuned"], demo.histories["from scratch"]
    for layer in LAYERS:
        assert tuned.trajectory("cka", layer=layer).values[0] > scratch.trajectory("cka", layer=layer).values[0]
    assert tuned.trajectory("agreement").values[0] > scratch.trajectory("agreement").values[0]


def test_every_network_learns_its_task(demo: Demo) -> None:
    assert list(demo.accuracies) == ["reference", "fine-tuned", "from scratch"]
    assert min(demo.accuracies.values()) > 0.5  # chance is 0.1


def test_the_table_prints_the_errors(demo: Demo) -> None:
    lines = [line for line in summary_table(summarize(demo.histories)).splitlines() if "conv1" in line]
    for line, measure in zip(lines, ("cka", "nbs"), strict=True):
        trajectory = demo.histories["fine-tuned"].trajectory(measure, layer="conv1")
        value, error = trajectory.values[-1], trajectory.standard_errors[-1]
        if measure == "nbs":  # which has errors on request
            assert "±" not in line
            continue
        assert f"{value:.3f} ± {error:.3f}" in line or f"{value:.2f} ± {error:.2f}" in line
        assert max(map(len, lines)) <= 80


def test_tensorboard_draws_the_bands_of_outputs(demo: Demo) -> None:
    events = EventAccumulator(str(demo.directory / "fine-tuned")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "_margins/" in tag]
    margins = {tag: [event.value for event in events.Scalars(tag)] for tag in tags}
    assert len(margins) == 6
    for name in ("agreement", "jsd", "rank_correlation"):
        shown = demo.histories["fine-tuned"].trajectory(name)
        ends = [np.array(margins[f"similarity_margins/{name}/{end}"]) for end in ("lower", "upper")]
        np.testing.assert_allclose(sum(ends) / 2, shown.values, atol=1e-6)
        np.testing.assert_allclose(ends[1] - ends[0], 3.92 * shown.standard_errors, atol=1e-6)


def test_progress_is_told_after_every_batch(demo: Demo, calls: list[str]) -> None:
    batches = EPOCHS * math.ceil(1347 / 64)
    assert calls == [stage for stage in demo.accuracies for _ in range(batches)]


def test_the_figure_is_a_png_with_something_in_it(demo: Demo) -> None:
    content = (demo.directory / "similarity.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 20_000


def test_a_seed_gives_the_same_numbers_and_the_process_is_left_as_it_was(demo: Demo, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = run_demo(tmp_path, epochs=EPOCHS, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again.accuracies == demo.accuracies
    for name in demo.histories:
        for mine, theirs in zip(demo.histories[name].measurements, again.histories[name].measurements, strict=True):
            assert {**mine.values, "seconds": 0} == {**theirs.values, "seconds": 0}


@pytest.mark.parametrize(
    ("tuned", "agreement", "phrase"),
    [
        ({"conv1": 0.999, "dense": 0.4}, 0.3, "is 1.00 in conv1 and 0.40 in dense, and 30% of the held-out"),
        ({"conv1": math.nan, "dense": 0.2}, 0.1, "is 0.20 in dense and 0.20 in dense, and 10%"),
        ({"conv1": math.nan}, math.nan, "is not known in any layer, and an unknown share of"),
    ],
)
def test_the_sentences_follow_from_the_numbers(tuned: dict[str, float], agreement: float, phrase: str) -> None:
    first, second = meaning(history(tuned, agreement), history({"conv1": 0.96, "dense": 0.21}))
    assert phrase in first
    assert second.endswith("its CKA with it is 0.96 in conv1 and 0.21 in dense.")


def test_the_sentences_quote_what_was_measured(demo: Demo) -> None:
    tuned, scratch = demo.histories["fine-tuned"], demo.histories["from scratch"]
    sentences = meaning(tuned, scratch)
    measured = [run.trajectory("cka", layer=layer).values[-1] for run in (tuned, scratch) for layer in LAYERS]
    numbers = re.findall(r"\d\.\d\d", " ".join(sentences))
    assert len(numbers) == 4
    for number in numbers:
        assert min(abs(float(number) - value) for value in measured) < 0.00501
    assert f"{tuned.trajectory('agreement').values[-1]:.0%}" in sentences[0]
