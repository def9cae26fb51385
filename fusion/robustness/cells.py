"""Cells of a robustness table, one JSON line each, written as they end."""

import fcntl
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fusion.run_directory import without_nan
from fusion.scoring.metrics import Metrics

CLEAN = "clean"
ROUTER = "router"
SENSOR_NAMES = {"camera": "camera", "lidar": "LiDAR", "radar": "radar"}


@dataclass(frozen=True)
class Cell:
    """One scenario at one budget: what it was, what it scored, what it cost. Plain values, so that it fits a JSON line.

    Attributes:
        scenario: its name.
        steps: faults in order: name, level, unit, family, channels (None for all of the modality).
        seed: of the scenario's draws.
        budget: share of the full cost that was asked for.
        run: word of what was evaluated (checkpoint, data, code); only cells of one word belong together.
        seen_in_training: ``fault``, ``family`` or ``neither``; None for clean data and where it is not known.
        error: why the cell could not run, in one line; then there is no score.
        warning: what makes the score doubtful.
        metrics: nuScenes scores; None with an error.
        num_samples: of the split.
        gflops: executed per sample.
        ms: median milliseconds per sample, forward and decoding.
        device: what the milliseconds were measured on.
        views: camera views run per sample.
        sensor_shares: share of samples that ran each sensor.
        branch_shares: share of samples that ran each branch of each unit.
        faulty: share of samples to which a fault was applied.
        inputs: digest of what the model was given.
        seconds: the cell took, loading and scoring included.
        policy: who chose the routes: ``router`` (the run's own), or a control such as ``full``, ``random``, ``static``.
        calibration: of the detections' scores, as ``Calibration.to_json``.
        gates: by sensor, histograms of the router's weights (``fusion.robustness.gates``).
        failover: by phase and by keyframe (``fusion.robustness.failover``); None without onset.
        regret: of the router against an oracle at equal cost (``fusion.robustness.regret``); None unless asked for.
    """

    scenario: str
    steps: tuple[dict, ...]
    seed: int
    budget: float
    run: str
    seen_in_training: str | None = None
    error: str | None = None
    warning: str | None = None
    metrics: Metrics | None = None
    num_samples: int = 0
    gflops: float = 0.0
    ms: float = 0.0
    device: str = "cpu"
    views: float = 0.0
    sensor_shares: dict[str, float] | None = None
    branch_shares: dict[str, dict[str, float]] | None = None
    faulty: float = 0.0
    inputs: str = ""
    seconds: float = 0.0
    policy: str = ROUTER
    calibration: dict | None = None
    gates: dict | None = None
    failover: dict | None = None
    regret: dict | None = None

    @property
    def key(self) -> str:
        """What makes two cells the same one."""
        scenario = [self.scenario, self.steps, self.seed] if self.steps else CLEAN
        return json.dumps([self.run, scenario, self.budget, self.policy])

    @property
    def is_clean(self) -> bool:
        return not self.steps

    @property
    def kept_sensors(self) -> tuple[str, ...] | None:
        """The sensors that are left where the scenario is a sensor subset, else None."""
        kept = tuple(self.scenario.split("+"))
        return kept if self.steps and set(kept) <= set(SENSOR_NAMES) else None

    @property
    def title(self) -> str:
        """What a reader is shown."""
        if self.is_clean:
            return "all sensors"
        if self.kept_sensors:
            title = " + ".join(SENSOR_NAMES[name] for name in self.kept_sensors)
            return f"{title} only" if len(self.kept_sensors) == 1 else title
        return re.sub(r"\blidar\b", "LiDAR", re.sub("[-_]", " ", self.scenario))

    def line(self) -> str:
        """One line of JSON."""
        metrics = None if self.metrics is None else self.metrics.to_json()
        return json.dumps(without_nan({**asdict(self), "metrics": metrics}), allow_nan=False)

    @staticmethod
    def from_line(line: str) -> "Cell":
        """The inverse of ``line``."""
        content = json.loads(line)
        metrics = content.pop("metrics")
        return Cell(
            **{**content, "steps": tuple(content["steps"])},
            metrics=None if metrics is None else Metrics.from_json(metrics),
        )


def read_cells(path: Path) -> list[Cell]:
    """All cells of a file, oldest first. A last line that was cut off by a crash is left out.

    Raises:
        ValueError: a line in the middle is no cell.
    """
    if not path.is_file():
        return []
    # What is no text is no cell either, and is named with its line.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    cells = []
    for number, line in enumerate(lines, start=1):
        is_cut = number == len(lines)
        if not line.strip() or is_cut:
            continue
        try:
            cells.append(Cell.from_line(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"expected a robustness cell in line {number} of {path}, got something else ({error}); delete the line"
            ) from None
    return cells


def newest_cells(cells: list[Cell]) -> list[Cell]:
    """The cells of the run that was written last, each in its newest state, in the order of first appearance."""
    if not cells:
        return []
    newest = {cell.key: cell for cell in cells if cell.run == cells[-1].run}
    return list(newest.values())


def append_cell(path: Path, cell: Cell) -> None:
    """Add a line and force it to disk; a line that was cut off by a crash is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        # Processes that share out the cells of a suite append to one file.
        fcntl.flock(file, fcntl.LOCK_EX)
        _drop_cut_line(file)
        file.write((cell.line() + "\n").encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _drop_cut_line(file) -> None:
    """Truncate behind the last line end."""
    size = file.seek(0, os.SEEK_END)
    block = 1 << 16
    position = size
    while position > 0:
        start = max(0, position - block)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            break
        position = start
    keep = start + found + 1 if size and position > 0 else 0
    if keep < size:
        file.truncate(keep)
    file.seek(0, os.SEEK_END)


def failed(cell: Cell, reason: str) -> Cell:
    """The cell as one that could not run."""
    return replace(cell, error=reason, metrics=None)
