"""Hugging Face models built from a config, with dict batches, attention masks and padding."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from lightning_sim import SimilarityMonitor
from tests.sketch import exact

LENGTH, WIDTH = 12, 16


class Sentences(torch.utils.data.Dataset):
    """Random token ids of random length, padded with `padding` on the right."""

    def __init__(self, count, padding=0):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 90, (count, LENGTH), generator=generator)
        lengths = torch.randint(4, LENGTH + 1, (count,), generator=generator)
        self.mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        self.ids = torch.where(self.mask == 1, self.ids, padding)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        label = int(self.ids[index, 0] > 45)
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": label}


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(vocab_size=100, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
                            intermediate_size=32, max_position_embeddings=LENGTH)  # fmt: skip
        self.model = BertForSequenceClassification(config)

    def forward(self, **inputs):
        return self.model(**inputs)

    def training_step(self, batch, batch_idx):
        return self(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def train(root, padding=0, **settings):
    seed_everything(0, verbose=False)
    network = Classifier()
    monitor = SimilarityMonitor(probe=Sentences(40, padding), layers=["model.bert.encoder.layer.?"], **settings)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, callbacks=[monitor], default_root_dir=str(root), accelerator="cpu", **quiet)
    trainer.fit(network, DataLoader(Sentences(64), batch_size=16))
    return network, monitor


def hidden_states(network, sentences):
    network.eval()
    with torch.no_grad():
        output = network(input_ids=sentences.ids, attention_mask=sentences.mask, output_hidden_states=True)
    return output.hidden_states[2], output.logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("pool", ["flatten", "mean", "first", "last", "tokens"])
def test_hidden_states_without_their_padding(tmp_path, pool):
    network, monitor = train(tmp_path, pool=pool)
    seed_everything(0, verbose=False)
    sentences, start = Sentences(40), Classifier()
    last = sentences.mask.sum(1) - 1
    rows = torch.arange(40)
    pooled = {
        "flatten": lambda x: (x * sentences.mask[..., None]).flatten(1),
        "mean": lambda x: torch.stack([x[i, : last[i] + 1].mean(0) for i in range(40)]),
        "first": lambda x: x[:, 0],
        "last": lambda x: x[rows, last],
        "tokens": lambda x: x[sentences.mask == 1],
    }[pool]
    (after, logits), (before, start_logits) = (hidden_states(net, sentences) for net in (network, start))
    value = monitor.history.trajectory("cka", layer="model.bert.encoder.layer.1").values[-1]
    # Tokens outnumber no buckets here, but are hashed into them and may collide.
    tolerance = 0.05 if pool == "tokens" else 1e-5
    assert value == pytest.approx(exact.cka_unbiased(pooled(after), pooled(before)), abs=tolerance)
    agreement = (logits.argmax(1) == start_logits.argmax(1)).float().mean()
    assert monitor.history.trajectory("agreement").values[-1] == pytest.approx(float(agreement), abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_padding_holds_does_not_count(tmp_path):
    values = []
    for padding in (0, 77):
        _, monitor = train(tmp_path, padding, pool="mean")
        values.append(monitor.history.trajectory("cka", layer="model.bert.encoder.layer.1").values[-1])
    assert values[0] == pytest.approx(values[1], abs=1e-5)
