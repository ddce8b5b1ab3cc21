"""Fixed integer hashes: the same bucket and sign for a sample or column on every rank, device and run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "HashedSamples",
    "column_signs",
    "fingerprint",
    "hash_samples",
    "random_buckets",
    "sample_buckets",
    "sample_signs",
    "shuffled_columns",
    "wrapped",
]

# Separate streams of the hash, so that sample signs, published buckets and column signs are independent of each other.
_SIGN_STREAM, _FINGERPRINT_STREAM, _COLUMN_STREAM, _SHUFFLE_STREAM, _PUBLISHED_STREAM = 2, 3, 4, 5, 6


@dataclass(frozen=True)
class HashedSamples:
    """Samples with their buckets and signs, so that many layers' sketches need not hash them anew.

    Attributes:
        ids: (b,) int64.
        buckets: (b,) int64.
        signs: (b,) of +1 and -1, in float32.
        run: the buckets as a slice, where they follow each other at equal distances; known for ids on the CPU only.
        fingerprint: of the set of ids.
        num_buckets: M.
        seed: of the hash.
    """

    ids: Tensor
    buckets: Tensor
    signs: Tensor
    run: slice | None
    fingerprint: int
    num_buckets: int
    seed: int

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> HashedSamples:
        """Buckets and signs on a device, where sketches of features on it need them; the ids stay."""
        if self.signs.dtype == dtype and self.signs.device == torch.device(device):
            return self
        unwaited = torch.device(device).type == "cuda"
        buckets = self.buckets.to(device, non_blocking=unwaited)
        return replace(self, buckets=buckets, signs=self.signs.to(device, dtype, non_blocking=unwaited))

    def blocks(self, size: int) -> Iterator[tuple[slice, HashedSamples]]:
        """Parts of at most so many samples, with their places."""
        if len(self.ids) <= size:
            yield slice(None), self
            return
        for start in range(0, len(self.ids), size):
            rows = slice(start, start + size)
            ids, buckets, signs = self.ids[rows], self.buckets[rows], self.signs[rows]
            yield rows, replace(self, ids=ids, buckets=buckets, signs=signs, run=_run(buckets))


def hash_samples(sample_ids: Tensor, num_buckets: int, seed: int) -> HashedSamples:
    """Bucket and sign of every sample, and their fingerprint, (b,) integers on any device."""
    ids = sample_ids.to(torch.int64)
    buckets = sample_buckets(ids, num_buckets)
    of_sign, of_print = _mix(ids + _sample_keys(seed, ids.device))
    signs = _signs(of_sign).to(torch.float32)
    return HashedSamples(ids, buckets, signs, _run(buckets), int(of_print.sum()), num_buckets, seed)


@lru_cache(maxsize=64)
def _sample_keys(seed: int, device: torch.device) -> Tensor:
    """Of the signs and of the fingerprint, (2, 1)."""
    return torch.tensor([[_hash_integer(seed, _SIGN_STREAM)], [_hash_integer(0, _FINGERPRINT_STREAM)]], device=device)


def _run(buckets: Tensor) -> slice | None:
    if buckets.device.type != "cpu" or len(buckets) < 2:
        return None
    steps = buckets.diff()
    step = int(steps[0])
    return slice(int(buckets[0]), int(buckets[-1]) + 1, step) if step > 0 and bool((steps == step).all()) else None


def sample_buckets(sample_ids: Tensor, num_buckets: int) -> Tensor:
    """Bucket of every sample, its id mod M, (b,) int64: balanced, and without collision while N <= M.

    Consecutive samples lie in consecutive buckets, a slice of the state. A multiplier and an offset from the seed, as
    of other linear hashes, would only name the buckets differently: the same samples would share one.
    """
    return sample_ids & (num_buckets - 1)


def sample_signs(sample_ids: Tensor, seed: int) -> Tensor:
    """Sign of every sample, (b,) int64 of +1 and -1."""
    return _signs(_hash(sample_ids, seed, _SIGN_STREAM))


def token_ids(sample_ids: Tensor, positions: Tensor) -> Tensor:
    """An id for every position of every sample, (n,) int64: hashed, since the number of positions varies."""
    return _mix(_mix(sample_ids) + positions)


def random_buckets(sample_ids: Tensor, num_buckets: int, part: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent uniform bucket and sign of every sample, (b,) int64 both; unbalanced, with collisions for any N."""
    hashed = _hash(sample_ids, seed, _PUBLISHED_STREAM + 16 * part)
    return hashed & (num_buckets - 1), _signs(hashed)


def fingerprint(sample_ids: Tensor) -> int:
    """Order-free, additive fingerprint of a set of samples: the sum of their hashes, wrapped to 64 bits."""
    return int(_hash(sample_ids.to(torch.int64), 0, _FINGERPRINT_STREAM).sum())


def wrapped(value: int) -> int:
    """A Python integer as the signed 64-bit integer that it wraps to, as sums of tensors do."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@lru_cache(maxsize=128)
def column_signs(
    width: int, folds: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Sign of every column for each of the folds, (folds, 1, width) of +1 and -1."""
    columns = torch.arange(width, dtype=torch.int64, device=device)
    return torch.stack([_signs(_hash(columns, seed, _COLUMN_STREAM + 16 * fold)).to(dtype) for fold in folds])[:, None]


@lru_cache(maxsize=16)
def shuffled_columns(width: int, fold: int, seed: int, device: torch.device) -> Tensor:
    """The columns 0 to width - 1 in a random order that is fixed for a fold, (width,) int64."""
    columns = torch.arange(width, dtype=torch.int64, device=device)
    return _hash(columns, seed, _SHUFFLE_STREAM + 16 * fold).argsort()


def _signs(hashed: Tensor) -> Tensor:
    return 1 - 2 * (_shift_right(hashed, 40) & 1)


def _hash(values: Tensor, seed: int, stream: int) -> Tensor:
    return _mix(values + _hash_integer(seed, stream))


@lru_cache(maxsize=1024)
def _hash_integer(seed: int, stream: int) -> int:
    key = torch.tensor(wrapped(seed * 1_000_003 + stream), dtype=torch.int64, device="cpu")
    return int(_mix(_mix(key)))


def _mix(values: Tensor) -> Tensor:
    # The finaliser of SplitMix64 (Steele, Lea & Flood 2014); the constants are its odd multipliers as signed
    # 64-bit integers, since torch wraps on overflow but has no arithmetic on unsigned ones.
    values = values + -7046029254386353131
    values = (values ^ _shift_right(values, 30)) * -4658895280553007687
    values = (values ^ _shift_right(values, 27)) * -7723592293110705685
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    # torch shifts the sign in; mask it away to get the unsigned shift that the hash is made of.
    return (values >> bits) & ((1 << (64 - bits)) - 1)
