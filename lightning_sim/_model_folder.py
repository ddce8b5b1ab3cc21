"""The files that hold a network's weights: the file itself, or those of a folder that says where they lie in it."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_sim._sharded_folder import METADATA

__all__ = ["weight_files"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


def weight_files(path: Path) -> list[Path]:
    """The file, or the files in a folder that together hold the weights; an index says which, where there are several.

    Of a folder of shards it is the one that says where they lie.

    Raises:
        FileNotFoundError: when a file is missing that the index names.
        ValueError: when the folder holds no weights, or an index that cannot be read.
    """
    if not path.is_dir():
        return [path]
    for name in (METADATA, *_WEIGHTS):
        if (path / name).exists():
            return [path / name]
        if (path / f"{name}.index.json").exists():
            return _of_index(path / f"{name}.index.json")
    if (path / "adapter_config.json").exists():
        raise ValueError(
            f"`reference` {str(path)!r} is the folder of an adapter, without the weights that it adapts; pass the "
            "network with it as an nn.Module, or save the merged one: network.merge_and_unload().save_pretrained(...)"
        )
    raise ValueError(
        f"`reference` {str(path)!r} is a folder, and a checkpoint is one file, or a folder with {', '.join(_WEIGHTS)}; "
        "those of a run lie in its folder checkpoints. DeepSpeed's are made one file by its zero_to_fp32.py"
    )


def _of_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / Path(name).name for name in names]  # and never elsewhere
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not a readable index of weights ({error}); copy, download or save it again"
        ) from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {', '.join(missing[:3])}, which is not there; download all {len(files)}"
        )
    return files
