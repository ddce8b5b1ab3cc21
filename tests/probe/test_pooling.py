import pytest
import torch
from torch import nn

from lightning_sim.probe import snapshot
from lightning_sim.probe.pooling import attention_mask, pool_sequence
from lightning_sim.sketch import Sketch
from lightning_sim.sketch.hashing import sample_buckets

IDS = torch.tensor([7, 3])
OUTPUT = torch.arange(24.0).reshape(2, 4, 3)
RIGHT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
LEFT = RIGHT.flip(1)


@pytest.mark.parametrize(
    ("pool", "mask", "expected"),
    [
        ("first", RIGHT, [OUTPUT[0, 0], OUTPUT[1, 0]]),
        ("first", LEFT, [OUTPUT[0, 1], OUTPUT[1, 3]]),
        ("last", RIGHT, [OUTPUT[0, 2], OUTPUT[1, 0]]),
        ("last", LEFT, [OUTPUT[0, 3], OUTPUT[1, 3]]),
        ("last", None, [OUTPUT[0, 3], OUTPUT[1, 3]]),
        ("mean", RIGHT, [OUTPUT[0, :3].mean(0), OUTPUT[1, 0]]),
        ("mean", None, [OUTPUT[0].mean(0), OUTPUT[1].mean(0)]),
    ],
)
def test_positions_that_are_no_padding(pool, mask, expected):
    features, ids = pool_sequence(OUTPUT, IDS, mask, pool)
    assert torch.allclose(features, torch.stack(expected))
    assert torch.equal(ids, IDS)


@pytest.mark.parametrize("pool", ["flatten", "mean", "first", "last", "tokens"])
def test_what_padding_holds_never_counts(pool):
    noisy = torch.where(RIGHT[..., None] == 0, torch.nan, OUTPUT)
    features, ids = pool_sequence(OUTPUT, IDS, RIGHT, pool)
    others, other_ids = pool_sequence(noisy, IDS, RIGHT, pool)
    assert torch.equal(features, others)
    assert torch.equal(ids, other_ids)


def test_every_token_is_a_sample_with_its_own_id():
    features, ids = pool_sequence(OUTPUT, IDS, RIGHT, "tokens")
    assert torch.equal(features, torch.cat([OUTPUT[0, :3], OUTPUT[1, :1]]))
    _, padded_further = pool_sequence(torch.cat([OUTPUT, OUTPUT], 1), IDS, torch.cat([RIGHT, 0 * RIGHT], 1), "tokens")
    assert torch.equal(ids, padded_further)
    _, many = pool_sequence(torch.zeros(200, 300, 1), torch.arange(200), None, "tokens")
    assert len(many.unique()) == 60_000
    load = torch.bincount(sample_buckets(many, 256), minlength=256).double()
    assert load.var() < 2 * load.mean()  # as thrown at random: variance equals mean


def test_other_shapes_are_no_sequences():
    for pool in ("mean", "tokens"):
        features, ids = pool_sequence(torch.ones(2, 5), IDS, RIGHT, pool)
        assert features.shape == (2, 5)
        assert ids is IDS


def test_a_mask_of_other_positions_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*\(2, 5\)"):
        pool_sequence(OUTPUT, IDS, torch.ones(2, 5), "mean")


def test_masks_are_found_in_mappings():
    assert attention_mask({"attention_mask": RIGHT}) is RIGHT
    assert attention_mask((OUTPUT, RIGHT)) is None
    assert attention_mask({"input_ids": RIGHT}) is None


def test_a_layer_is_pooled_once_for_all_its_gradient_representations(monkeypatch):
    pooled = []

    def counted(*arguments):
        pooled.append(arguments)
        return pool_sequence(*arguments)

    monkeypatch.setattr(snapshot, "pool_sequence", counted)
    network = nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(20, 2))
    found = snapshot.take_snapshot(
        network,
        [(torch.arange(4), torch.randn(4, 4, 3))],
        ["0"],
        forward=lambda network, batch: network(batch),
        make_sketch=lambda: Sketch(8, 8),
        representations=("features", "gradients", "features*gradients", "elementwise"),
        pool="mean",
    )
    assert [layers["0"].count for layers in found.sketches.values()] == [4] * 4
    # The features when they come, then features and gradients: the outputs are no sequence.
    assert len(pooled) == 3
