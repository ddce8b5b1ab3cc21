"""Stitches that are trained, and the analyses made of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.stitching import Stitch, Stitched, StitchingSums, score_stitched
from lightning_sim.stitching.study import StitchingStudy, profile_figure
from lightning_sim.stitching.training import StitchingTask

from .networks import Convolutional, labelled
from .test_stitched import drawn

FRONT, BACK = Convolutional(6).eval(), Convolutional(5, seed=1).eval()


def study(batch_size=16, **options):
    data = labelled(96)
    fit, evaluation = torch.utils.data.random_split(data, [64, 32], torch.Generator().manual_seed(0))
    loader = DataLoader(fit, batch_size=batch_size, shuffle=True)
    return StitchingStudy(FRONT, "norm", BACK, "norm", loader, DataLoader(evaluation, batch_size=32), **options)


def loss_of(task, batch):
    task.log = lambda *arguments, **options: None
    return task.training_step(batch, 0)


def test_the_losses_are_those_of_their_definitions():
    stitched, batch = Stitched(FRONT, "norm", BACK, "norm", drawn(6, 5)), next(iter(DataLoader(labelled(), 40)))
    logits, own = stitched(batch), BACK(batch[0])
    soft = F.cross_entropy(logits, own.softmax(1))
    torch.testing.assert_close(loss_of(StitchingTask(stitched), batch), soft)
    hard = F.cross_entropy(logits, batch[1])
    torch.testing.assert_close(loss_of(StitchingTask(stitched, labels="hard"), batch), hard)
    given, theirs = stitched.stitch(FRONT.norm(FRONT.first(batch[0]))), BACK.norm(BACK.first(batch[0]))
    similarity = centered_kernel_alignment(given.flatten(1), theirs.flatten(1), estimator="biased")
    torch.testing.assert_close(loss_of(StitchingTask(stitched, cka=0.5), batch), soft + 0.5 * similarity)


def test_training_lowers_the_loss_and_changes_the_stitch_alone():
    seed_everything(0, verbose=False)
    found = study()
    before = [value.clone() for network in (FRONT, BACK) for value in network.state_dict().values()]
    linear = drawn(6, 5)
    start = linear._replace(weight=20 * linear.weight)  # whose predictions are sure, and wrong
    untrained = score_stitched(found.stitched(start), found._evaluation)
    trained = found.train(start, learning_rate=1.0)
    assert found.score(trained).scores.cross_entropy < untrained.cross_entropy - 0.01
    after = [value for network in (FRONT, BACK) for value in network.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for network in (FRONT, BACK) for parameter in network.parameters())


def test_two_factors_keep_their_rank_and_an_l1_norm_gives_exact_zeros():
    found = study()
    factors = found.train(Stitch(found.map(kind="reduced_rank", rank=2), rank=2), learning_rate=0.05)
    assert torch.linalg.matrix_rank(factors.weight.detach(), atol=1e-5) == 2
    sparse = found.train(found.map(), l1=20.0)
    assert 0.1 < found.score(sparse).sparsity < 1
    with pytest.raises(ValueError, match="`l1` is for stitches of one weight"):
        StitchingTask(found.stitched(factors), l1=0.1)
    with pytest.raises(ValueError, match="stitch without parameters"):
        StitchingTask(found.stitched(None))
    with pytest.raises(ValueError, match='labels="hard" needs classes'):
        loss_of(StitchingTask(found.stitched(drawn(6, 5)), labels="hard"), labelled(8).tensors[0])


def test_an_l1_norm_shrinks_at_every_step_of_the_optimizer_and_no_other_batch():
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = partial(Trainer, max_epochs=1, accumulate_grad_batches=2, enable_model_summary=False, **quiet)
    found = study(trainer=trainer)  # four batches
    start = drawn(6, 5)
    trained = found.train(start, l1=1e7, learning_rate=1e-9)  # Adam itself moves by 1e-9
    shrunk = start.weight.sign() * (start.weight.abs() - 2 * 1e7 * 1e-9).clamp_min(0)
    torch.testing.assert_close(trained.weight.detach(), shrunk, rtol=0, atol=1e-6)


def test_sums_at_hand_are_taken():
    sums = StitchingSums(FRONT, BACK, {"norm": "norm", "second": "second"})
    sums.add([labelled(64).tensors[0]])
    own = StitchingStudy(FRONT, "second", BACK, "second", [labelled(64).tensors[0]], [])
    given = StitchingStudy(FRONT, "second", BACK, "second", [], [], sums=sums)
    torch.testing.assert_close(given.map().weight, own.map().weight)


def test_profiles_and_their_figure():
    seed_everything(0, verbose=False)
    found = study(32)
    low = found.low_rank_profile([1, 5])
    assert low["least squares"][5].scores == pytest.approx(found.score(found.map()).scores, abs=1e-6)
    assert set(low["task loss"]) == {1, 5}
    sparse = found.sparsity_profile([1e-9, 1e9])["lasso"]
    assert (sparse[1e-9].sparsity, sparse[1e9].sparsity) == (0, 1)
    line = found.mode_connectivity(3, learning_rate=0.01)
    assert list(line) == [0.0, 0.5, 1.0]
    figure = profile_figure("Rank", {name: {k: v.scores.relative for k, v in of.items()} for name, of in low.items()})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["least squares", "task loss"]
    assert list(axes.lines[0].get_xdata()) == [1, 5]
