"""The probe: a fixed set of samples, in a fixed order, each with an id that is the same in every pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

__all__ = ["MINIMUM_SAMPLES", "Probe", "tensor_bytes"]

MINIMUM_SAMPLES = 4
_SAMPLES_IN_FINGERPRINT = 8
_DEFAULT_BATCH_SIZE = 64


class Probe:
    """The first `num_samples` samples of a dataset in dataset order, in batches with their sample ids.

    A DataLoader gives its dataset, batch size and collate function; its sampler, shuffling and workers are not used,
    so that nothing of its state moves. An iterable dataset is read once, and its first samples are kept.

    Args:
        source: a DataLoader, a Dataset or any sequence of samples.
        num_samples: at most so many.

    Raises:
        ValueError: when the source is empty or has fewer than 4 samples, or no such thing as a dataset.
    """

    def __init__(self, source: Any, num_samples: int) -> None:
        dataset, batch_size, collate = source, None, default_collate
        if isinstance(source, DataLoader):
            dataset, batch_size, collate = source.dataset, source.batch_size, source.collate_fn
            if source.batch_sampler is not None:
                batch_size = getattr(source.batch_sampler, "batch_size", None)
            else:  # automatic batching is off: the dataset makes batches
                raise ValueError(
                    "the probe's DataLoader has batch_size=None, so its samples cannot be counted; "
                    "pass probe=Dataset of single samples, or a DataLoader with a batch size"
                )
        if isinstance(dataset, IterableDataset):
            dataset = list(islice(iter(dataset), num_samples))
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"`probe` must be a DataLoader or a Dataset, got {type(source).__name__}; "
                "a Dataset has __getitem__ and __len__, or is an IterableDataset"
            )
        self.dataset: Dataset[Any] = dataset
        self.size = min(num_samples, len(dataset))
        if self.size < MINIMUM_SAMPLES:
            raise ValueError(
                f"the probe has {self.size} samples, and a comparison needs at least {MINIMUM_SAMPLES}"
                + ("; the dataset is empty" if self.size == 0 else "")
            )
        self._batch_size = min(int(batch_size or _DEFAULT_BATCH_SIZE), self.size)
        self._collate: Callable[[list[Any]], Any] = collate

    def batches(
        self, rank: int = 0, world_size: int = 1, *, one_by_one: bool = False
    ) -> Iterator[tuple[Tensor, Any]]:
        """This rank's share as (sample ids (b,), batch); the shares are disjoint and together the probe.

        `one_by_one` gives batches of one sample.
        """
        indices = list(range(self.size))[rank::world_size]
        if not indices:
            return
        size = 1 if one_by_one else self._batch_size
        samples = Subset(self.dataset, indices)
        for start in range(0, len(indices), size):
            ids = indices[start : start + size]
            batch = self._collate(samples.__getitems__(list(range(start, start + len(ids)))))
            yield torch.tensor(ids, device="cpu"), batch

    def num_batches(self, rank: int = 0, world_size: int = 1, *, one_by_one: bool = False) -> int:
        """How many batches this rank's share has."""
        return -(-len(range(rank, self.size, world_size)) // (1 if one_by_one else self._batch_size))

    def fingerprint(self) -> str:
        """Hash of the size and the first samples' content: the same for the same probe, on every rank and day."""
        digest = hashlib.sha256(str(self.size).encode())
        for index in range(min(self.size, _SAMPLES_IN_FINGERPRINT)):
            _hash_content(self._collate([self.dataset[index]]), digest.update)
        return digest.hexdigest()[:16]


def tensor_bytes(value: Tensor) -> bytes:
    """The values as they lie in memory, for hashes."""
    return value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()


def _hash_content(value: Any, update: Callable[[bytes], None]) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        for key in value:
            update(str(key).encode())
            _hash_content(value[key], update)
    elif isinstance(value, tuple | list):
        for part in value:
            _hash_content(part, update)
    elif isinstance(value, str | int | float | bool):
        update(repr(value).encode())
