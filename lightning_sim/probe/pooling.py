"""What of a sequence (batch, positions, width) counts as a sample, with padding left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sim.sketch.hashing import token_ids

__all__ = ["POOLS", "attention_mask", "last_position", "pool_sequence"]

POOLS = ("flatten", "mean", "first", "last", "tokens")


def pool_sequence(output: Tensor, sample_ids: Tensor, mask: Tensor | None, pool: str) -> tuple[Tensor, Tensor]:
    """Features (n, ...) and their ids (n,) from one layer's output for a batch.

    Only outputs of shape (batch, positions, width) are sequences; others are returned as they are.

    Args:
        output: (b, ...).
        sample_ids: (b,) integers.
        mask: (b, positions), nonzero where there is no padding; None if nothing is padded.
        pool: ``"flatten"``: all positions side by side, padding as zeros; ``"mean"``, ``"first"``, ``"last"`` over or
            of the positions that are no padding; ``"tokens"``: every such position is a sample of its own.

    Raises:
        ValueError: when the mask does not fit the positions.
    """
    if output.ndim != 3 or (pool == "flatten" and mask is None):
        return output, sample_ids
    kept = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device) if mask is None else mask != 0
    if kept.shape != output.shape[:2]:
        if pool == "flatten":  # not over the positions that the mask is about
            return output, sample_ids
        raise ValueError(
            f"its output of shape {tuple(output.shape)} does not have the positions of the attention mask of shape "
            f"{tuple(kept.shape)}"
        )
    kept = kept.to(output.device)
    if pool == "tokens":
        sample, position = kept.nonzero(as_tuple=True)
        return output[kept], token_ids(sample_ids.to(output.device)[sample], position)
    if pool == "mean":
        return _zeroed(output, kept).float().sum(1) / kept.sum(1, keepdim=True).clamp_min(1), sample_ids
    if pool == "flatten":
        return _zeroed(output, kept), sample_ids
    position = last_position(kept) if pool == "last" else kept.int().argmax(1)
    return output[torch.arange(len(output), device=output.device), position], sample_ids


def _zeroed(output: Tensor, kept: Tensor) -> Tensor:
    return output.masked_fill(~kept[..., None], 0)


def last_position(kept: Tensor) -> Tensor:
    """Index (b,) of the last position that is no padding, on whichever side the padding is."""
    positions = torch.arange(kept.shape[1], device=kept.device)
    return (positions * (kept != 0)).argmax(1)


def attention_mask(batch: Any) -> Tensor | None:
    """The mask in a batch, where the batch is a mapping that has one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
