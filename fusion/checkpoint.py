"""Checkpoint files: written whole or not at all, read without executing anything, checked before use."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor, nn

_PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.Size, torch.dtype, torch.device)
_MODEL_PREFIX = "model."
_AVERAGE = "WeightAverage"


class AtomicCheckpointIO(CheckpointIO):
    """Writes into a neighbour of the target, forces it to disk, then renames.

    Lightning's own writer goes through the system's temporary folder; where that is another file system, the last step
    is a plain copy, and a kill in it destroys the former checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        """Write plain data only.

        Raises:
            TypeError: something in the checkpoint would need a pickle of our own.
        """
        require_plain(checkpoint)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load_checkpoint(self, path, map_location: Any | None = None, weights_only: bool | None = None) -> dict:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink(missing_ok=True)


def require_plain(value: Any, where: str = "checkpoint") -> None:
    """That nested data holds only tensors, numbers, strings and containers of them.

    Raises:
        TypeError: names the place and the type of the first thing that is not plain.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_plain(key, f"a key of {where}")
            require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple, set)):
        for index, item in enumerate(value):
            require_plain(item, f"{where}[{index}]")
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"expected plain data in a checkpoint, got {type(value).__name__} at {where}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All of a checkpoint, on the CPU. Nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, corrupted, or no checkpoint of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, there is no file {path}; give one that a training wrote")
    advice = "give another checkpoint, or train again"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make the unpickler raise almost anything
        size = path.stat().st_size
        raise ValueError(
            f"expected a whole checkpoint, got {path} ({size} bytes) that cannot be read; {advice}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"expected a checkpoint with a state_dict, got other data in {path}; {advice}")
    return checkpoint


def model_weights(checkpoint: Mapping[str, Any], average: bool = True) -> dict[str, Tensor]:
    """The model's parameters and buffers; parameters from the weights' average where there is one and it is wanted."""
    weights = {
        name.removeprefix(_MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_MODEL_PREFIX)
    }
    state = checkpoint.get("callbacks", {}).get(_AVERAGE)
    if average and state and state["num_updates"]:
        weights |= {name: value.to(weights[name].dtype) for name, value in state["average"].items()}
    return weights


def with_weights_of(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint with some of the model's weights replaced, in their running average as well.

    Raises:
        ValueError: a weight that the checkpoint does not have.
    """
    missing = sorted(name for name in weights if _MODEL_PREFIX + name not in checkpoint["state_dict"])
    if missing:
        raise ValueError(f"expected weights that the checkpoint has, got {missing[0]}; give the run's own model")
    state = checkpoint["state_dict"] | {_MODEL_PREFIX + name: value for name, value in weights.items()}
    changed = {**checkpoint, "state_dict": state}
    kept = checkpoint.get("callbacks", {}).get(_AVERAGE)
    if kept:
        average = {name: weights.get(name, value) for name, value in kept["average"].items()}
        changed["callbacks"] = {**checkpoint["callbacks"], _AVERAGE: {**kept, "average": average}}
    return changed


def load_model(path: Path, model: nn.Module, average: bool = True) -> None:
    """Put a checkpoint's weights into a model that was built from its configuration.

    Args:
        average: whether to prefer the running average of the weights over those of the last step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupted, or belongs to another model: the first differences are named.
    """
    weights = model_weights(read_checkpoint(path), average)
    require_same_model(weights, model, path)
    model.load_state_dict(weights)


PARTS = {
    "all": ("",),
    "camera": ("cameras.", "merge.projections.camera.", "merge.missing.camera"),
    "lidar": ("lidar.", "merge.projections.lidar.", "merge.missing.lidar"),
    "radar": ("radar.", "merge.projections.radar.", "merge.missing.radar"),
}
"""What of a model a training can start from another run's weights: everything, or one sensor's way into the merge."""


def start_from(model: nn.Module, part: str, path: Path) -> int:
    """Put one part of another run's weights into a model that is about to be trained; the rest stays as it is.

    Args:
        part: one of PARTS. With ``all``, parameters that only the new model has (such as early exits) keep their start.
        path: checkpoint; its running average is taken where there is one.

    Returns:
        How many tensors were taken over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown part, none of it in the checkpoint, or a tensor that the model lacks or shapes otherwise.
    """
    if part not in PARTS:
        raise ValueError(f"expected start_from to name {', '.join(PARTS)}, got '{part}'; give part: RUN")
    weights = {
        name: value
        for name, value in model_weights(read_checkpoint(path)).items()
        if name.startswith(PARTS[part]) and not name.startswith("router.")
    }
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = [f"{name} {list(value.shape)}" for name, value in weights.items() if own.get(name) != tuple(value.shape)]
    if wrong or not weights:
        what = f"{wrong[0]}, which the model has not ({len(wrong)} such)" if wrong else "none"
        raise ValueError(
            f"expected weights of the part '{part}' in {path} that fit the model, got {what}; start from a run of the "
            "same encoders"
        )
    model.load_state_dict(weights, strict=False)
    return len(weights)


def require_same_model(weights: Mapping[str, Tensor], model: nn.Module, path: Path | str) -> None:
    """That names and shapes are those of the model.

    Raises:
        ValueError: names the first differences.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    if own == theirs:
        return
    differences = [
        f"{name} {list(theirs.get(name, ['absent']))} instead of {list(own.get(name, ['absent']))}"
        for name in sorted({*own, *theirs})
        if own.get(name) != theirs.get(name)
    ]
    shown = "; ".join(differences[:3]) + ("" if len(differences) <= 3 else f"; and {len(differences) - 3} more")
    raise ValueError(
        f"expected a checkpoint of this model, got one of another in {path}: {shown}; use the configuration that it "
        "was trained with"
    )
