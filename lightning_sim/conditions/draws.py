"""Random numbers of each sample by itself: the same in any batch, on any rank and device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Draws", "number_of"]


class Draws:
    """Random numbers on the CPU, of one stream for every sample; nothing is drawn from the global random state.

    Args:
        sample_ids: of the samples, (n,).
        seed: of all streams.
        purpose: what they are drawn for; other purposes get other numbers.
    """

    def __init__(self, sample_ids: Tensor, seed: int, purpose: str) -> None:
        self._streams = [
            torch.Generator("cpu").manual_seed(number_of(f"{seed}/{purpose}/{id_}")) for id_ in sample_ids.tolist()
        ]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (n, *shape)."""
        return self._each(lambda stream, _: torch.randn(shape, generator=stream, device="cpu", dtype=torch.float32))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers (n, *shape)."""
        drawn = self._each(lambda stream, _: torch.rand(shape, generator=stream, device="cpu", dtype=torch.float32))
        return drawn * (high - low) + low

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers (n, *shape) from `low` to `high` - 1."""
        return self._each(lambda stream, _: torch.randint(low, high, shape, generator=stream, device="cpu"))

    def signs(self, *shape: int) -> Tensor:
        """-1 or 1, (n, *shape)."""
        return 2 * self.integers(0, 2, *shape) - 1

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson numbers of these rates (n, ...)."""
        return self._each(lambda stream, index: torch.poisson(rates[index], generator=stream))

    def _each(self, draw: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        return torch.stack([draw(stream, index) for index, stream in enumerate(self._streams)])


def number_of(text: str) -> int:
    """A number below 2^56 that is another one for another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
