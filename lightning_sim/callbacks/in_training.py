"""What a Trainer decides for a monitor: how networks are run, on which samples, and with whose weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils._pytree import tree_leaves

from lightning_sim.engine import prepared
from lightning_sim.probe import call_network, isolated_random_state
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.settings import Settings

__all__ = ["probe_runner", "require_own_name", "require_runnable", "whose_weights"]

_WRAPPING = (FSDPStrategy, DeepSpeedStrategy)
_AVERAGING: Any = getattr(callbacks, "WeightAveraging", ())  # lightning >= 2.6


def probe_runner(settings: Settings, trainer: Trainer) -> ProbeRunner:
    """Runs networks on the probe as the training does: its device, precision and ranks."""
    strategy, precision = trainer.strategy, trainer.precision_plugin

    def prepare(network: nn.Module, batch: Any) -> Any:
        if network is trainer.lightning_module:
            return strategy.batch_to_device(precision.convert_input(batch))
        # The training's precision is not the reference's, which may be a float32 teacher of a bfloat16 student.
        return prepared(network, strategy.batch_to_device(batch))

    return settings.make_runner(
        _probe_source(settings, trainer),
        device=strategy.root_device,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        replicas=_replicas(trainer),
        prepare=prepare,
        context=lambda network: precision.forward_context() if network is trainer.lightning_module else nullcontext(),
    )


def require_runnable(trainer: Trainer, network: LightningModule, settings: Settings) -> None:
    """Refuse strategies whose shards a plain forward cannot run with, and networks that do not say how they are run."""
    if isinstance(trainer.strategy, _WRAPPING):
        raise ValueError(
            f"SimilarityMonitor does not work with {type(trainer.strategy).__name__}, which shards the network's "
            "weights over the ranks by a wrapper; use ModelParallelStrategy with torch's fully_shard or "
            'strategy="ddp", or compare checkpoints afterwards'
        )
    if settings.needs_gradients and _replicas(trainer) > 1:
        raise ValueError(
            'representations=("features",) is all that can be compared under tensor parallelism, where no rank has '
            "the gradients of a whole layer; with tensor_parallel_size=1 gradients can be compared as well"
        )
    if settings.forward is call_network and not is_overridden("forward", network):
        raise ValueError(
            f"{type(network).__name__} defines no forward(); define it, or say how to run the network with "
            "SimilarityMonitor(..., forward=lambda network, batch: network.model(batch[0]))"
        )


def _replicas(trainer: Trainer) -> int:
    """How many ranks in a row have the same batches."""
    strategy = trainer.strategy
    return strategy.device_mesh["tensor_parallel"].size() if isinstance(strategy, ModelParallelStrategy) else 1


def require_own_name(names: Sequence[str]) -> None:
    """Refuse two monitors of one name among those of a Trainer."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two of the Trainer's monitors have the name {name!r}; give each its own, "
                f'SimilarityMonitor(..., name="{name}_2") for instance'
            )


def whose_weights(trainer: Trainer, monitor: Callback) -> str:
    """Averaging callbacks swap the average in during validation, and out before the callbacks that follow them."""
    ordered: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    position = next((index for index, callback in enumerate(ordered) if callback is monitor), len(ordered))
    swapped = any(isinstance(callback, _AVERAGING) for callback in ordered[position:])
    return "average" if swapped and trainer.enable_validation else "current"


def _probe_source(settings: Settings, trainer: Trainer) -> Any:
    if settings.probe is not None:
        return settings.probe
    source = trainer.val_dataloaders
    if source is None and trainer.enable_validation:
        # Lightning asks for the loaders when the first validation is due; asking it to now could move random state.
        with isolated_random_state(settings.seed):
            source = trainer.fit_loop.epoch_loop.val_loop._data_source.dataloader()
    found = [loader for loader in tree_leaves(source) if loader is not None]  # a list of loaders may be empty
    return found[0] if found else tree_leaves(trainer.train_dataloader)[0]
