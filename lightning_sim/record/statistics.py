"""What may stand beside a number: how far it would move on other samples, what chance gives, and what carries it."""

from __future__ import annotations

__all__ = ["STATISTICS"]

STATISTICS = {
    "standard_error": "standard deviation of the value over other samples of the same kind, not over other trainings",
    "chance_mean": "what the samples of the one network paired with wrong ones of the other would read, on average",
    "chance_deviation": "the standard deviation of that",
    "z": "such deviations of the value above it",
    "p_value": "share of such pairings that read at least as similar; below 0.001 it cannot be trusted",
    "effective_samples": "how many samples the value stands on, where all weigh the same all of them",
    "largest_twentieth": "share of the value that the largest twentieth of the samples carries",
}
