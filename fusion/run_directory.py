"""One run, one folder: configuration, checkpoints, metrics, detections, robustness cells, report."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its files. ``dynfusion report RUN`` needs nothing else."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def detections(self) -> Path:
        return self.path / "detections"

    @property
    def robustness(self) -> Path:
        return self.path / "robustness.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @staticmethod
    def create(path: Path, config_text: str) -> "RunDirectory":
        """A new run.

        Raises:
            ValueError: the folder already holds a run, or is a file.
        """
        run = RunDirectory(path)
        if run.config.exists():
            raise ValueError(
                f"expected a new folder for the run, but {path} already holds one; choose another run_dir, "
                f"or go on with it: dynfusion train resume={path}"
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"expected a folder for the run, got the file {path}; choose another run_dir")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(run.config, config_text)
        return run

    @staticmethod
    def existing(path: Path) -> "RunDirectory":
        """A run that was started before.

        Raises:
            FileNotFoundError: the folder holds no run.
        """
        run = RunDirectory(path)
        if not run.config.is_file():
            raise FileNotFoundError(
                f"expected a run folder with config.yaml, got {path}; give the run_dir of a training, "
                "such as run=runs/demo"
            )
        return run

    def require_checkpoint(self) -> Path:
        """The newest checkpoint.

        Raises:
            FileNotFoundError: the run saved none yet.
        """
        if not self.last_checkpoint.is_file():
            raise FileNotFoundError(
                f"expected a checkpoint at {self.last_checkpoint}, there is none; train first: "
                f"dynfusion train resume={self.path}"
            )
        return self.last_checkpoint


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: into a neighbour first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    """Write plain data as JSON, a whole file or nothing; NaN is written as null."""
    write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def without_nan(value):
    """Plain data with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
