from lightning.pytorch import Trainer

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.demo import DigitsNetwork, digits_loader

network = DigitsNetwork()  # any LightningModule with a forward()
monitor = SimilarityMonitor(reference="init")  # or the path of a checkpoint, or another network
trainer = Trainer(max_epochs=3, callbacks=[monitor])
trainer.fit(network, digits_loader("training"), digits_loader("held-out"))
print(monitor.history.to_pandas())  # now; and at any later time, from the run's directory:
print(read_history(trainer.log_dir).trajectory("cka", layer="conv1").values)
