import types

import pytest
import torch
from torch import nn

from lightning_sim import SimilarityMonitor
from lightning_sim.probe import call_network

BATCH = {"input_ids": torch.ones(2, 3), "labels": torch.zeros(2)}


class Network(nn.Module):
    """Says what it was given."""

    def forward(self, input_ids, labels=None):
        return input_ids, labels


class Everything(nn.Module):
    def forward(self, **inputs):
        return inputs


class Requiring(nn.Module):
    def forward(self, input_ids, labels):
        return input_ids, labels


class Decoder(Everything):
    config = types.SimpleNamespace(is_encoder_decoder=True)


def test_labels_are_not_given_to_networks():
    assert call_network(Network(), BATCH)[1] is None
    assert call_network(Everything(), BATCH).keys() == {"input_ids"}
    assert call_network(nn.Sequential(), BATCH) is BATCH  # which takes none of the keys


def test_labels_are_given_where_nothing_runs_without_them():
    assert call_network(Requiring(), BATCH)[1] is BATCH["labels"]
    assert call_network(Decoder(), BATCH).keys() == {"input_ids", "labels"}
    started = {**BATCH, "decoder_input_ids": torch.ones(2, 1)}
    assert call_network(Decoder(), started).keys() == {"input_ids", "decoder_input_ids"}


def test_a_forward_that_is_named():
    monitor = SimilarityMonitor(forward="lightning_sim.probe.forward:call_network", loss="torch.nn:functional.nll_loss")
    assert monitor.settings.forward is call_network
    assert monitor.settings.loss is nn.functional.nll_loss
    with pytest.raises(ValueError, match=r'"package\.module:function".*no_such'):
        SimilarityMonitor(forward="lightning_sim.no_such:function")
