"""The probe: a fixed set of samples, in a fixed order, each with an id that is the same in every pass."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

__all__ = ["CHOICES", "MINIMUM_SAMPLES", "Probe", "advancing", "tensor_bytes"]

CHOICES = ("spaced", "first", "random")
MINIMUM_SAMPLES = 4
_SAMPLES_IN_FINGERPRINT = 8
_DEFAULT_BATCH_SIZE = 64
_GOLDEN_SECTION = (5**0.5 - 1) / 2  # whose multiples fill [0, 1) evenly


class Probe:
    """`num_samples` samples of a dataset in dataset order, in batches with their sample ids, 0 to num_samples - 1.

    A DataLoader gives its dataset, batch size, collate function and number of workers; its sampler and shuffling are
    not used, so that nothing of its state moves. An iterable dataset is read once, and its first samples are kept.

    Args:
        source: a DataLoader, a Dataset or any sequence of samples.
        num_samples: at most so many.
        choice: which of the samples: ``"spaced"``, one of each of `num_samples` equal stretches of the dataset;
            ``"first"``; or ``"random"``.
        seed: of the random choice.
        keep: whether to keep the batches in memory once they are made.

    Raises:
        ValueError: when the source is empty or has fewer than 4 samples, or no such thing as a dataset.
    """

    def __init__(
        self, source: Any, num_samples: int, *, choice: str = "spaced", seed: int = 0, keep: bool = False
    ) -> None:
        dataset, batch_size, collate = source, None, default_collate
        self._workers: dict[str, Any] = {}
        if isinstance(source, DataLoader):
            dataset, batch_size, collate = source.dataset, source.batch_size, source.collate_fn
            if source.num_workers:
                names = ("num_workers", "worker_init_fn", "multiprocessing_context", "prefetch_factor", "timeout")
                self._workers = {name: getattr(source, name) for name in names}
            if source.batch_sampler is not None:
                batch_size = getattr(source.batch_sampler, "batch_size", None)
            else:  # automatic batching is off: the dataset makes batches
                raise ValueError(
                    "the probe's DataLoader has batch_size=None, so its samples cannot be counted; "
                    "pass probe=Dataset of single samples, or a DataLoader with a batch size"
                )
        if isinstance(dataset, IterableDataset):
            if choice == "random":
                raise ValueError(
                    "samples of an iterable dataset cannot be chosen at random, since nobody knows how many there are; "
                    'its first ones are taken with probe_choice="first"'
                )
            dataset, choice, self._workers = list(islice(iter(dataset), num_samples)), "first", {}
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"`probe` must be a DataLoader or a Dataset, got {type(source).__name__}; "
                "a Dataset has __getitem__ and __len__, or is an IterableDataset"
            )
        self.dataset: Dataset[Any] = dataset
        self.is_made = False  # whether batches are others than those of the dataset
        self.choice = choice
        self.size = min(num_samples, len(dataset))
        if self.size < MINIMUM_SAMPLES:
            raise ValueError(
                f"the probe has {self.size} samples, and a comparison needs at least {MINIMUM_SAMPLES}"
                + ("; the dataset is empty" if self.size == 0 else "")
            )
        self.indices = _chosen(choice, self.size, len(dataset), seed)
        self._batch_size = min(int(batch_size or _DEFAULT_BATCH_SIZE), self.size)
        self._collate: Callable[[list[Any]], Any] = collate
        self._kept: dict[tuple[int, int, bool], list[tuple[Tensor, Any]]] | None = {} if keep else None

    def batches(self, rank: int = 0, world_size: int = 1, *, one_by_one: bool = False) -> Iterator[tuple[Tensor, Any]]:
        """This rank's share as (sample ids (b,), batch); the shares are disjoint and together the probe.

        `one_by_one` gives batches of one sample.
        """
        ids = self._shares(rank, world_size, one_by_one)
        if self._kept is None:
            yield from self._loaded(ids, self._workers)
            return
        share = rank, world_size, one_by_one
        if share not in self._kept:
            self._kept[share] = list(self._loaded(ids, self._workers))
        # Copies: a network may change its input in place.
        yield from ((ids, copy.deepcopy(batch)) for ids, batch in self._kept[share])

    def first_batch(
        self, world_size: int = 1, *, one_by_one: bool = False, most: int | None = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The first of the first rank's `batches` alone, or the beginning of it, without starting workers for it."""
        yield from self._loaded([self._shares(0, world_size, one_by_one)[0][:most]], {})

    def with_batches(self, batches: list[tuple[Tensor, Any]], rank: int = 0, world_size: int = 1) -> Probe:
        """The same samples, as these batches have them, of which a rank's share is made."""
        other = copy.copy(self)
        other._kept, other.is_made = {(rank, world_size, False): batches}, True
        return other

    def num_batches(self, rank: int = 0, world_size: int = 1, *, one_by_one: bool = False) -> int:
        """How many batches this rank's share has."""
        return len(self._shares(rank, world_size, one_by_one))

    def fingerprint(self) -> str:
        """Hash of the size and the first samples' content: the same for the same probe, on every rank and day."""
        digest = hashlib.sha256(str(self.size).encode())
        for index in self.indices[:_SAMPLES_IN_FINGERPRINT]:
            _hash_content(self._collate([self.dataset[index]]), digest.update)
        return digest.hexdigest()[:16]

    def _shares(self, rank: int, world_size: int, one_by_one: bool) -> list[list[int]]:
        """The sample ids of every batch of a rank."""
        ids = list(range(rank, self.size, world_size))
        size = 1 if one_by_one else self._batch_size
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    def _loaded(self, shares: list[list[int]], workers: Mapping[str, Any]) -> Iterator[tuple[Tensor, Any]]:
        """The batches of these sample ids, made by so many workers."""
        chosen = [[self.indices[id_] for id_ in ids] for ids in shares]
        loader = DataLoader(self.dataset, batch_sampler=chosen, collate_fn=self._collate, **workers)
        with torch.device("cpu"):  # where the loader draws a seed, whatever the default device is
            batches = iter(loader)
        for ids, batch in zip(shares, batches, strict=True):
            yield torch.tensor(ids, device="cpu"), batch


def _chosen(choice: str, size: int, length: int, seed: int) -> list[int]:
    """Which samples of a dataset are the probe, in their order."""
    if choice == "first" or size == length:
        return list(range(size))
    if choice == "random":
        drawn = torch.randperm(length, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        return sorted(drawn[:size].tolist())
    bounds = [part * length // size for part in range(size + 1)]
    # Not always the same place in the stretch, which would meet one class only where classes take turns.
    places = [part * _GOLDEN_SECTION % 1 for part in range(size)]
    return [start + int(place * (end - start)) for start, end, place in zip(bounds, bounds[1:], places, strict=False)]


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


def advancing(batches: Iterator[tuple[Tensor, Any]], advance: Callable[[], None]) -> Iterator[tuple[Tensor, Any]]:
    """The batches; `advance` is called after every one."""
    for batch in batches:
        yield batch
        advance()
