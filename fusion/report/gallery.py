"""What a report shows of single samples: which ones, their frames, and what was found in them.

Everything lies in the run's folder: ``gallery/<token>/<scenario>.npz`` (a reduced frame, no pickle) and
``detections/gallery/<scenario>@<budget>.json`` (nuScenes' submission format, these samples only).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fusion.report.frame_file import save_frame
from fusion.robustness.cells import CLEAN
from fusion.routing.plan import BRANCHES
from fusion.run_directory import write_json
from fusion.scoring.evaluate import EvaluationResult
from fusion.scoring.submission import read_submission, submission_results
from sensors.boxes import Boxes
from sensors.faults.suites import MODALITIES, Scenario
from sensors.frame import Frame, History
from sensors.rig import UNITS

NUM_SAMPLES = 4


@runtime_checkable
class Frames(Protocol):
    """A split's frames by number, as ``NuScenesFrames``."""

    tokens: tuple[str, ...]

    def __getitem__(self, i: int) -> Frame:
        """Frame i."""

    def history(self, i: int) -> History:
        """What came before frame i."""


@dataclass(frozen=True, eq=False)
class Found:
    """Detections of one sample under one scenario and budget, and what ran for them.

    Attributes:
        boxes: global frame.
        branches: by unit, ``skip``, ``lite`` or ``full``.
    """

    boxes: Boxes
    gflops: float
    branches: dict[str, str]


def gallery_rows(num_samples: int, num_shown: int = NUM_SAMPLES) -> list[int]:
    """Evenly spread over the split, neither at its start nor at its end; the same in every evaluation."""
    shown = min(num_shown, num_samples)
    return [int((k + 0.5) * num_samples / shown) for k in range(shown)]


def file_name(scenario: str) -> str:
    """The scenario's name without characters that a file name may not have."""
    return re.sub(r"[^A-Za-z0-9+._@-]", "-", scenario)


def save_sample_detections(run_dir: Path, scenario: str, budget: float, result: EvaluationResult) -> None:
    """Keep what was found in the gallery's samples under one scenario."""
    rows = gallery_rows(len(result.tokens))
    tokens = [result.tokens[row] for row in rows]
    ran = {
        result.tokens[row]: {
            "gflops": float(result.gflops[row]),
            "branches": {unit: BRANCHES[branch] for unit, branch in zip(UNITS, result.branch[row], strict=True)},
        }
        for row in rows
    }
    content = {
        "meta": {"scenario": scenario, "budget": budget, "ran": ran},
        "results": submission_results({token: result.detections[token] for token in tokens}, tokens),
    }
    write_json(Path(run_dir) / "detections" / "gallery" / f"{file_name(scenario)}@{budget:g}.json", content)


def load_sample_detections(run_dir: Path) -> dict[tuple[str, float], dict[str, Found]]:
    """By scenario and budget, then by token; empty where nothing was kept."""
    found = {}
    for path in sorted((Path(run_dir) / "detections" / "gallery").glob("*.json")):
        detections, meta = read_submission(path)
        found[meta["scenario"], float(meta["budget"])] = {
            token: Found(boxes, meta["ran"][token]["gflops"], meta["ran"][token]["branches"])
            for token, boxes in detections.items()
        }
    return found


def gallery_scenarios(scenarios: Sequence[Scenario], most: int = 4) -> list[Scenario]:
    """Which of many scenarios to show: clean data, the LiDAR lost, then faults, one of each sensor first."""
    faults = [scenario for scenario in scenarios if scenario.steps]
    chosen = [Scenario(CLEAN), *(scenario for scenario in faults if scenario.name == "camera+radar")]
    by_modality = {}
    for scenario in faults:
        if "+" not in scenario.name and scenario.name not in MODALITIES:
            by_modality.setdefault(scenario.steps[0][0].modality, scenario)
    chosen += [scenario for scenario in by_modality.values() if scenario not in chosen]
    chosen += [scenario for scenario in faults if scenario not in chosen]
    return chosen[:most]


def save_report_samples(run_dir: Path, frames: Frames, scenarios: Sequence[Scenario] = ()) -> None:
    """Keep the gallery's frames under some scenarios, reduced to what a picture shows.

    A scenario that cannot be applied to a frame has no picture of it; its cell in the table says why.

    Args:
        frames: of the split that was evaluated, in the same order.
        scenarios: what was evaluated; some are chosen by ``gallery_scenarios``.
    """
    chosen = gallery_scenarios(scenarios)
    for row in gallery_rows(len(frames.tokens)):
        clean = frames[row]
        for scenario in chosen:
            try:
                frame, _ = scenario.apply(clean, frames.history(row), None, 1.0)
            except ValueError:
                continue
            save_frame(Path(run_dir) / "gallery" / clean.token / f"{file_name(scenario.name)}.npz", frame)


def gallery_frames(run_dir: Path) -> dict[str, dict[str, Path]]:
    """By token, then by ``file_name`` of the scenario: where the kept frames are."""
    folder = Path(run_dir) / "gallery"
    return {
        sample.name: {path.stem: path for path in sorted(sample.glob("*.npz"))}
        for sample in sorted(folder.glob("*"))
        if sample.is_dir()
    }
