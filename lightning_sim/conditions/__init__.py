"""Conditions of the samples: corrupted, attacked, or changed by a function of one's own."""

from lightning_sim.conditions.attacks import ATTACKS, Attack
from lightning_sim.conditions.corruptions import COLOUR_CORRUPTIONS, CORRUPTIONS, GREY_CORRUPTIONS, Corruption

__all__ = ["ATTACKS", "COLOUR_CORRUPTIONS", "CORRUPTIONS", "GREY_CORRUPTIONS", "Attack", "Corruption"]
