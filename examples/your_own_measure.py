"""Measures of your own beside the built-in ones: a function of another package, and one of the outputs.

Run: python examples/your_own_measure.py
"""

import scipy.spatial
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_sim import SimilarityMonitor
from lightning_sim.demo import DigitsNetwork, digits_loader
from lightning_sim.measures import OutputFunction, Scale


def disparity(x: Tensor, y: Tensor) -> float:
    """What SciPy finds between two layers' features (samples, width), after the best rotation and scaling."""
    return float(scipy.spatial.procrustes(x.cpu().numpy(), y.cpu().numpy())[2])


def lost_confidence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """How much less probability the predicted classes have than in the reference."""
    return (reference_logits.softmax(1).amax(1) - logits.softmax(1).amax(1)).mean()


def main(epochs: int = 4, root: str = ".") -> SimilarityMonitor:
    seed_everything(0, verbose=False)
    # A function of two feature matrices is called for every layer; what is compared by name stands beside it.
    confidence = OutputFunction(lost_confidence, scale=Scale(low=-1, high=1, same=0))
    monitor = SimilarityMonitor("init", measures=("cka", "mutual_knn", disparity, confidence))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor],
        logger=CSVLogger(root, name="your_own_measure"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsNetwork(), digits_loader("training"), digits_loader("held-out"))
    table = monitor.history.to_pandas()
    of_layers = table[table.layer.notna()].pivot_table("value", ["measure", "layer"], "epoch", sort=False)
    print(of_layers.round(3).to_string())
    print(monitor.history.trajectory("lost_confidence"))
    return monitor


if __name__ == "__main__":
    main()
