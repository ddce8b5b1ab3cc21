"""A monitored training on real data in under a minute: what ``lightning-sim demo`` runs. Needs the extra ``demo``."""

from lightning_sim.demo.digits import DigitsNetwork, digits_loader
from lightning_sim.demo.training import Demo, run_demo

__all__ = ["Demo", "DigitsNetwork", "digits_loader", "run_demo"]
