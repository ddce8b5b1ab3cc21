"""Measuring from the Trainer of transformers (with accelerate): a callback of six lines.

Run: python examples/transformers_trainer.py
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from lightning_sim import SimilarityEngine
from lightning_sim.demo import digits_loader


class Similarity(TrainerCallback):
    def __init__(self, engine: SimilarityEngine) -> None:
        self.engine = engine

    def on_epoch_end(self, args, state, control, **kwargs):
        self.engine.measure(epoch=round(state.epoch) - 1, step=state.global_step)


def tokens(part: str) -> list[dict[str, torch.Tensor]]:
    """Every digit as a sentence of its 64 grey values."""
    images, labels = digits_loader(part).dataset.tensors
    return [{"input_ids": i, "labels": y} for i, y in zip((images * 16).long().flatten(1), labels, strict=True)]


def main(epochs: int = 3, directory: str = "transformers_run") -> SimilarityEngine:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network = BertForSequenceClassification(BertConfig(vocab_size=17, num_labels=10, **sizes))
    layers = ["bert.encoder.layer.?", "classifier"]
    engine = SimilarityEngine(network, "init", tokens("held-out"), layers=layers, pool="mean", directory=directory)
    arguments = TrainingArguments(
        directory,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(network, arguments, train_dataset=tokens("training"), callbacks=[Similarity(engine)]).train()
    print(engine.history.to_pandas().query("measure == 'cka'").pivot(index="layer", columns="epoch", values="value"))
    return engine


if __name__ == "__main__":
    main()
