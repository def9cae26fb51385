"""The word that cells of one checkpoint, data set, configuration and code have in common."""

from pathlib import Path

from torch import nn

from datamodules.index import open_index
from fusion.adaptive.allocation import shared_word
from fusion.robustness.detector import ForeignModel
from fusion.robustness.fingerprint import code_word, dataset_word, joined_word, model_word, sensor_files_word
from fusion.run_directory import RunDirectory

PARTS = ("checkpoint", "data set", "settings", "code")
"""What the parts of a word stand for, in order."""

_DATA_SETTINGS = ("lidar_sweeps", "radar_sweeps", "missing", "clean_preparation")
"""Attributes of a data module that decide what the model is given."""


def run_word(model: nn.Module, datamodule, scorer, run_dir: Path, settings: str = "") -> str:
    """Stands for weights, data, settings and code: only cells of one word belong together.

    It is the same on every machine: contents count, neither places nor times of files.

    Args:
        datamodule: where the model's inputs come from.
        scorer: of the split.
        run_dir: with the run's ``config.yaml``, where there is one.
        settings: as in ``SuiteOptions``.
    """
    kind = model.word() if isinstance(model, ForeignModel) else shared_word(getattr(model, "shared_budget", None))
    index = open_index(scorer.root, scorer.version)
    files = sensor_files_word(index, scorer.root, scorer.tokens)
    path = RunDirectory(Path(run_dir)).config
    config = path.read_text(encoding="utf-8") if path.is_file() else ""
    data_settings = repr([getattr(datamodule, name, None) for name in _DATA_SETTINGS])
    parts = (
        joined_word(model_word(model), kind),
        joined_word(dataset_word(scorer.root, scorer.version), files, scorer.split),
        joined_word(data_settings, config, settings),
        code_word(),
    )
    return "-".join(part[:8] for part in parts)


def changed_parts(word: str, other: str) -> tuple[str, ...]:
    """In which of PARTS two words differ; all of them where one is of another form."""
    own, others = word.split("-"), other.split("-")
    if len(own) != len(PARTS) or len(others) != len(PARTS):
        return PARTS
    return tuple(part for part, one, two in zip(PARTS, own, others, strict=True) if one != two)
