"""What the network is compared with: its own start, an earlier epoch, a checkpoint, or another network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lightning_sim._arguments import described, listed
from lightning_sim._checkpoints import load_state_dict, require_checkpoint
from lightning_sim._fitting import FittedWeights, fit_weights
from lightning_sim._guards import whole
from lightning_sim._model_folder import weight_files
from lightning_sim.probe.samples import tensor_bytes
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch, SketchSet, load_sketches
from lightning_sim.sketch.hashing import fingerprint
from lightning_sim.sketch.state_files import is_sketch_file

__all__ = ["Reference"]

_MOVING = ("init", "previous")


class Reference:
    """The network that every measurement compares with.

    Args:
        source: one of

            - ``"init"``: the network as it is when training starts (on resume, as it was then);
            - ``"previous"``: the network at the measurement before;
            - the path of a Lightning checkpoint (``.ckpt``; also the folder of a distributed one), of a state dict
              (``.safetensors``, ``.pt``, ``.pth``, ``.bin``), or of a folder as Hugging Face libraries or
              torch.distributed.checkpoint save it, of a network built like the monitored one or like a part of it.
              Wrappers of the one or the other do not matter, adapters that the file lacks are not run, and only the
              weights that the chosen layers need must be there: without a head's, for instance, the outputs are not
              compared;
            - the path of a file of sketches (``.safetensors``), as ``SimilarityMonitor(save_sketches=True)`` or
              :func:`lightning_sim.sketch.save_sketches` writes it: the reference's network is not needed;
            - an ``nn.Module`` or ``LightningModule``, of any architecture. It is run in evaluation mode and never
              changed.

    Loading a file never executes code from it: pickled checkpoints are read with torch's ``weights_only``, and one that
    holds code objects is refused.

    Raises:
        ValueError: for an unknown source, or a file type that is not one of these.
        FileNotFoundError: for a path that does not exist.

    Example:
        >>> from lightning_sim import Reference
        >>> Reference("init").describe()
        {'kind': 'init'}
    """

    def __init__(self, source: str | Path | nn.Module | Reference) -> None:
        self.kind: str
        self.module: nn.Module | None = None
        self.path: Path | None = None
        self.saved: SketchSet | None = None
        if isinstance(source, Reference):
            self.module, self.path, self.kind, self.saved = source.module, source.path, source.kind, source.saved
        elif isinstance(source, nn.Module):
            self.module, self.kind = source, "module"
        elif isinstance(source, str) and source in _MOVING:
            self.kind = source
        elif isinstance(source, str | Path) and str(source):
            self.path, self.kind = Path(source), "checkpoint"
            require_checkpoint(self.path)
            if self.path.suffix == ".safetensors" and is_sketch_file(self.path):
                self.kind, self.saved = "sketches", load_sketches(self.path)
        else:
            raise ValueError(
                '`reference` must be "init", "previous", the path of a checkpoint, an nn.Module or a Reference, '
                f"got {described(source)}"
            )

    def __repr__(self) -> str:
        source = type(self.module).__name__ if self.module is not None else self.path or self.kind
        return f"Reference({str(source)!r})"

    @classmethod
    def from_sketches(cls, path: str | Path) -> Reference:
        """A network of which only its saved sketches are at hand.

        Raises:
            FileNotFoundError: for a path that does not exist.
            ValueError: when the file is damaged, or no file of sketches; it names the field.
        """
        if not isinstance(path, str | Path):
            raise ValueError(f"`path` must be the path of a file of sketches, got {described(path)}")
        load_sketches(path)  # says why, where `Reference(path)` would take another file for a state dict
        return cls(path)

    def describe(self) -> dict[str, Any]:
        """Kind, and path and content hash or class, as the record states them.

        Raises:
            ValueError: for a module whose parameters have no values yet.
        """
        if self.path is not None:
            return {"kind": self.kind, "path": str(self.path), "sha256": _sha256(self.path)}
        if self.module is not None:
            _require_values(self.module)
            return {"kind": self.kind, "class": type(self.module).__name__, "sha256": _sha256_of_weights(self.module)}
        return {"kind": self.kind}

    def weights_for(self, network: nn.Module) -> FittedWeights | None:
        """The checkpoint's parameters and buffers under the network's names; None where there is no checkpoint.

        Names are matched behind whatever wraps the network or stands in the file (``model.``, ``bert.``,
        ``_orig_mod.``, ``base_model.model.``). A file of a part of the network is taken for that part; what it lacks is
        NaN, so that what depends on it cannot be taken for the file's.

        Raises:
            ValueError: when the file cannot be read safely, or few weights fit, with the nearest names.
        """
        if self.path is None or self.saved is not None:
            return None
        return fit_weights(load_state_dict(self.path), network, self.path)

    def snapshot(
        self,
        probe: str,
        num_samples: int,
        empty: Sketch,
        representations: Sequence[str] = ("features",),
        gradients: str = "",
    ) -> Snapshot | None:
        """The saved sketches and outputs, if they can be compared with those made now; None where nothing is saved.

        Args:
            probe: fingerprint of the probe's content.
            num_samples: of the probe.
            empty: a sketch as it is made now.
            representations: that are needed.
            gradients: whose gradients are taken now, in words.

        Raises:
            ValueError: when they are of another probe, of gradients of another loss, or of other sizes or another seed,
                with what would work.
        """
        if self.saved is None:
            return None
        sketches = {representation: dict(self.saved.of(representation)) for representation in representations}
        settings = ("num_buckets", "num_projections", "seed", "dtype")
        expected = num_samples, fingerprint(torch.arange(num_samples))
        for layer, sketch in (item for layers in sketches.values() for item in layers.items()):
            if any(getattr(sketch, name) != getattr(empty, name) for name in settings):
                wanted = ", ".join(f"{name}={getattr(sketch, name)}" for name in settings)
                raise ValueError(f"{self.path}: the sketch of {layer!r} was made with {wanted}; monitor with the same")
            if not self.saved.probe and (sketch.count, sketch.fingerprint) != expected:
                raise ValueError(
                    f"{self.path}: the sketch of {layer!r} is of {sketch.count} samples whose ids are not those of the "
                    f"probe, 0 to {num_samples - 1}; pass the probe that it was made on"
                )
        for representation in representations:
            SketchSet({}, probe=probe, gradients=gradients).require_comparable(self.saved, representation)
        logits, problem = self.saved.logits, None
        if logits is None:
            problem = "is not in the file of sketches"
        elif len(logits) != num_samples:
            problem = f"is of {len(logits)} samples in the file of sketches, and the probe has {num_samples}"
        return Snapshot(sketches, logits if problem is None else None, output_problem=problem)


def _require_values(module: nn.Module) -> None:
    lacking = [
        name
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_meta or isinstance(value, UninitializedParameter | UninitializedBuffer)
    ]
    if lacking:
        raise ValueError(
            f"the reference {type(module).__name__} has no values for {listed(lacking)}: they are on the device meta "
            "or of a lazy module; load its weights, or run it once, before training"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    shards = sorted(path.glob("*.distcp"))  # of a folder whose metadata may be the same for other weights
    for part in [*weight_files(path), *shards]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sha256_of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(tensor_bytes(whole(value)))
    return digest.hexdigest()
