import numpy as np
import pytest
from torch import nn

from lightning_sim.matching import best_monotone_match
from lightning_sim.probe import pair_layers


def blocks(depth, prefix="blocks"):
    inside = {prefix: nn.ModuleList(nn.Linear(2, 2) for _ in range(depth)), "head": nn.Linear(2, 2)}
    return nn.ModuleDict(inside)


def test_globs_in_mappings_expand():
    mine, theirs = (
        nn.ModuleDict({"encoder": blocks(3)}),
        nn.ModuleDict({"backbone": nn.ModuleDict({"encoder": blocks(2)})}),
    )
    pairing = pair_layers(mine, theirs, {"encoder.blocks.[0-9]": "backbone.encoder.blocks.[0-9]"})
    assert pairing.layers == {f"encoder.blocks.{i}": f"backbone.encoder.blocks.{i}" for i in (0, 1)}
    pairing = pair_layers(
        mine, theirs, {"encoder.*": "backbone.encoder.*", "encoder.blocks.0": "backbone.encoder.head"}
    )
    assert pairing.layers == {
        "encoder.blocks": "backbone.encoder.blocks",
        "encoder.blocks.0": "backbone.encoder.head",  # a name wins over a glob
        "encoder.blocks.1": "backbone.encoder.blocks.1",
        "encoder.head": "backbone.encoder.head",
    }
    assert pairing.named == {"encoder.blocks.0"}
    assert pairing.left_out.keys() == {"encoder.blocks.2"}
    with pytest.raises(ValueError, match=r"no layer 'x.blocks' in the reference"):
        pair_layers(mine, theirs, {"encoder.*": "x.*"})
    with pytest.raises(ValueError, match="as many wildcards"):
        pair_layers(mine, theirs, {"encoder.*": "*.encoder.*"})
    with pytest.raises(ValueError, match=r"no layer matches the glob 'decoder.\*' in the network"):
        pair_layers(mine, theirs, {"decoder.*": "backbone.*"})


def test_auto_and_globs_take_what_both_have():
    for layers in ("auto", "*", ["blocks.*", "h*"]):
        pairing = pair_layers(blocks(4), blocks(3), layers)
        assert pairing.how == "name"
        assert {"blocks.0", "blocks.2", "head"} <= pairing.layers.keys()
        assert pairing.left_out == {"blocks.3": "has no counterpart in the reference, the nearest is blocks.2"}
    with pytest.raises(ValueError, match=r"no layer 'blocks.3' in the reference. Nearest: blocks.2"):
        pair_layers(blocks(4), blocks(3), ["blocks.*", "blocks.3"])


def test_prefixes_of_both_networks_are_left_aside():
    mine, theirs = nn.ModuleDict({"model": blocks(2)}), nn.ModuleDict({"net": nn.ModuleDict({"trunk": blocks(2)})})
    assert pair_layers(mine, theirs, "auto").layers == {
        f"model.{name}": f"net.trunk.{name}" for name in ("blocks.0", "blocks.1", "head")
    }


def test_architectures_without_common_names_are_paired_by_relative_depth():
    pairing = pair_layers(blocks(4), nn.ModuleDict({name: nn.Linear(2, 2) for name in "xyz"}), "auto")
    assert pairing.how == "depth"
    # 0, 1/4, 1/2, 3/4 and 1 of the way, where the reference has 0, 1/2 and 1.
    assert list(pairing.layers.values()) in (list("xxyzz"), list("xyyyz"))
    assert pair_layers(blocks(1, "a"), blocks(1, "b"), {"a.0": "b.0"}).how == "mapping"


def test_a_glob_with_room_for_one_digit_says_what_it_leaves_out():
    assert pair_layers(blocks(12), blocks(12), "blocks.?").overlooked == {"blocks.?": ["blocks.10", "blocks.11"]}
    assert pair_layers(blocks(12), blocks(12), ["blocks.?", "blocks.??"]).overlooked == {}
    assert pair_layers(blocks(3), blocks(3), ["blocks.?", "head"]).overlooked == {}


def test_messages_stay_short():
    with pytest.raises(ValueError, match=r"Nearest: blocks\.1") as refused:
        pair_layers(blocks(500), blocks(500), ["block.1"])
    assert len(str(refused.value)) < 300
    assert "and 494 more" in str(refused.value)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3), (3, 1)])
def test_the_best_monotone_match_is_the_best_of_all(shape):
    values = np.random.default_rng(0).uniform(size=shape)
    rows, columns = shape

    def allowed(match):
        steps = np.diff(match)
        return (steps > 0).all() if rows <= columns else (steps >= 0).all() and len(set(match)) == columns

    every = [match for match in np.ndindex(*[columns] * rows) if allowed(match)]
    best = max(every, key=lambda match: values[range(rows), match].sum())
    assert best_monotone_match(values) == list(best)


def test_layers_of_saved_sketches_that_auto_takes_are_not_named():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    pairing = pair_layers(network, ["a", "b", "c"], "auto")
    assert pairing.layers == {"a": "a", "b": "b"}
    assert pairing.named == frozenset()
    assert pair_layers(network, ["a", "b"], ["a"]).named == {"a"}
