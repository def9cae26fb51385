"""nuScenes submission files to columns, fast and unforgiving.

The file is walked sample by sample with the standard library's decoder: of the million boxes of a whole submission only
one sample's are Python objects at a time, and a sample that is listed twice, which ``json.load`` would silently drop,
is seen.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from json.decoder import scanstring
from pathlib import Path

import numpy as np

from fusion.scoring.settings import MAX_BOXES_PER_SAMPLE
from fusion.scoring.table import BoxTable, wide
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES, NO_ATTRIBUTE, Boxes

_WIDTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_LABELS = {name: row for row, name in enumerate(DETECTION_NAMES)}
_ATTRIBUTES = {"": NO_ATTRIBUTE, **{name: row for row, name in enumerate(ATTRIBUTE_NAMES)}}
_FIELDS = ("sample_token", *_WIDTHS, "detection_name", "detection_score", "attribute_name")
_SPACE = re.compile(r"[ \t\n\r]*")
_UNIT_TOLERANCE = 0.01
_GREATEST = 1e9
"""Of metres, m/s and scores: squares and sums of what is greater leave the range of floats."""


@dataclass(frozen=True, eq=False)
class SubmissionTable:
    """A submission file.

    Attributes:
        tokens: in the order of the file.
        table: all boxes in the order of the file; its samples are rows of ``tokens``. A velocity may be NaN: unknown.
        meta: the file's block of that name.
    """

    tokens: tuple[str, ...]
    table: BoxTable
    meta: dict


def read_table(path: Path) -> SubmissionTable:
    """All boxes of a submission.

    Headings are those of the turned x axis projected on the ground; roll and pitch are not kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no submission: cut off, without ``results``, a sample twice or with more than 500 boxes, or a
            box that lacks or distorts a field (NaN, infinity, unknown name, size of 0, rotation that is no unit
            quaternion, token of another sample).
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a submission file, got no file at {path}; check the path")
    text = path.read_text(encoding="utf-8", errors="replace")
    meta, parts = {}, {}
    try:
        for key, value, token in _walk(text):
            if token is None:
                meta = value if key == "meta" and isinstance(value, dict) else meta
            elif token in parts:
                raise _BadBoxes(f"expected every sample once in {path}, got sample {token} twice; merge its boxes")
            else:
                parts[token] = _columns(token, value, path)
    except _NoResults:
        raise ValueError(
            f"expected the blocks 'meta' and 'results' in {path}, got none; see nuscenes.org for the format"
        ) from None
    except _BadBoxes as error:
        raise ValueError(str(error)) from None
    except (ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got a file that ends or breaks at: {_place(error)}") from None
    tokens = tuple(parts)
    table = _table(list(parts.values()))
    _check_numbers(table, tokens, path)
    return SubmissionTable(tokens, table, meta)


class _NoResults(Exception):
    """The file has no block of results."""


class _BadBoxes(Exception):
    """JSON, but no submission."""


def _place(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "brackets within brackets without end"
    return str(error) if isinstance(error, json.JSONDecodeError) else "its end"


def _walk(text: str) -> Iterator[tuple[str, object, str | None]]:
    """The file's blocks as (name, content, None), and of ``results`` each sample as ("results", boxes, token)."""
    decode = json.JSONDecoder().raw_decode
    position, found = _SPACE.match(text).end(), False
    if text[position : position + 1] != "{":
        decode(text, position)
        raise _NoResults
    blocks = _Keys(text, position)
    for key, start in blocks:
        if key == "results":
            if found:
                raise json.JSONDecodeError("a second block 'results'", text, start)
            found = True
            if text[start] != "{":
                raise _NoResults
            samples = _Keys(text, start)
            for token, inner in samples:
                value, samples.position = decode(text, inner)
                yield key, value, token
            blocks.position = samples.position
        else:
            value, blocks.position = decode(text, start)
            yield key, value, None
    if not found:
        raise _NoResults
    rest = _SPACE.match(text, blocks.position).end()
    if rest != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


class _Keys:
    """Keys of a JSON object and where their values start; the caller sets ``position`` behind each value."""

    def __init__(self, text: str, position: int):
        self.text, self.position, self.is_first = text, position + 1, True

    def __iter__(self) -> "_Keys":
        return self

    def __next__(self) -> tuple[str, int]:
        text, position = self.text, _SPACE.match(self.text, self.position).end()
        if text[position : position + 1] == "}":
            self.position = position + 1
            raise StopIteration
        if not self.is_first:
            position = self._behind(",", position)
        self.is_first = False
        key, position = scanstring(text, self._behind('"', position))
        return key, self._behind(":", position)

    def _behind(self, mark: str, position: int) -> int:
        position = _SPACE.match(self.text, position).end()
        if self.text[position : position + 1] != mark:
            raise json.JSONDecodeError(f"Expecting '{mark}'", self.text, position)
        return position + 1 if mark == '"' else _SPACE.match(self.text, position + 1).end()


def _columns(token: str, entries: object, path: Path) -> dict[str, np.ndarray]:
    """The boxes of one sample as columns, and their number."""
    if not isinstance(entries, list):
        raise _BadBoxes(f"expected a list of boxes for sample {token} of {path}, got {_short(entries)}")
    if len(entries) > MAX_BOXES_PER_SAMPLE:
        raise _BadBoxes(
            f"expected at most {MAX_BOXES_PER_SAMPLE} boxes per sample, got {len(entries)} for sample {token} of "
            f"{path}; keep the best"
        )
    try:
        columns = {name: _numbers([entry[name] for entry in entries], width) for name, width in _WIDTHS.items()}
        columns["score"] = _floats([entry["detection_score"] for entry in entries])
        columns["label"] = np.array([_LABELS[entry["detection_name"]] for entry in entries], np.int64)
        columns["attribute"] = np.array([_ATTRIBUTES[entry["attribute_name"]] for entry in entries], np.int64)
        own = all(entry["sample_token"] == token for entry in entries)
    except (KeyError, TypeError, ValueError, OverflowError):
        own = False
    if not own:
        raise _BadBoxes(_misfit(token, entries, path))
    return columns


def _numbers(lists: list, width: int) -> np.ndarray:
    """Lists of one length as rows.

    Raises:
        TypeError, ValueError: another length, or something that is no number.
    """
    if not set(map(len, lists)) <= {width}:
        raise ValueError
    return _floats(list(chain.from_iterable(lists))).reshape(len(lists), width)


def _floats(values: list) -> np.ndarray:
    # NumPy would read "1.5" and True as numbers.
    if not set(map(type, values)) <= {float, int}:
        raise TypeError
    return np.fromiter(values, np.float64, len(values))


def _misfit(token: str, entries: list, path: Path) -> str:
    """Which box of a sample is no box, in one line."""
    for number, entry in enumerate(entries):
        where = f"box {number} of sample {token} of {path}"
        if not isinstance(entry, dict):
            return f"expected a JSON object as {where}, got {_short(entry)}"
        missing = [name for name in _FIELDS if name not in entry]
        if missing:
            return f"expected the field '{missing[0]}' in {where}, got none; see nuscenes.org for the format"
        if entry["sample_token"] != token:
            return f"expected the sample's own token in {where}, got {_short(entry['sample_token'])}"
        for name, width in _WIDTHS.items():
            try:
                _numbers([entry[name]], width)
            except (TypeError, ValueError, OverflowError):
                return f"expected {width} numbers as '{name}' of {where}, got {_short(entry[name])}"
        if type(entry["detection_score"]) not in (float, int):
            return f"expected a number as 'detection_score' of {where}, got {_short(entry['detection_score'])}"
        for name, known in (("detection_name", _LABELS), ("attribute_name", _ATTRIBUTES)):
            if not isinstance(entry[name], str) or entry[name] not in known:
                names = ", ".join(known) if "" not in known else f"{', '.join(list(known)[1:])} or ''"
                return f"expected '{name}' of {where} among {names}; got {_short(entry[name])}"
    return f"expected numbers within the range of floats in sample {token} of {path}, got a greater one"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _table(parts: list[dict[str, np.ndarray]]) -> BoxTable:
    names = (*_WIDTHS, "score", "label", "attribute")
    if not parts:
        return BoxTable(wide(Boxes.empty()), np.zeros(0, np.int64))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    w, x, y, z = columns["rotation"].T
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt((columns["rotation"] ** 2).sum(axis=1))
        turned = np.abs(length - 1) <= _UNIT_TOLERANCE
        heading = np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)
    boxes = Boxes(
        center_m=columns["translation"],
        size_lwh_m=columns["size"][:, [1, 0, 2]],
        # NaN marks a rotation that is none, for the check of all numbers.
        yaw_rad=np.where(turned, heading, np.nan),
        velocity_mps=columns["velocity"],
        label=columns["label"],
        score=columns["score"],
        attribute=columns["attribute"],
        num_points=np.full(len(w), -1, np.int64),
    )
    counts = np.array([len(part["score"]) for part in parts], np.int64)
    return BoxTable(boxes, np.repeat(np.arange(len(parts)), counts))


def _check_numbers(table: BoxTable, tokens: tuple[str, ...], path: Path) -> None:
    """Refuse what the metric cannot use, naming the first such box."""
    boxes = table.boxes
    demands = {
        "a finite translation (within 1e9 m)": _within(boxes.center_m).all(axis=1),
        "finite sizes above 0 m (up to 1e9 m)": (_within(boxes.size_lwh_m) & (boxes.size_lwh_m > 0)).all(axis=1),
        "a unit quaternion (w x y z) as rotation": np.isfinite(boxes.yaw_rad),
        "a velocity that is no infinity (up to 1e9 m/s)": ~(np.abs(boxes.velocity_mps) > _GREATEST).any(axis=1),
        "a finite score of at least 0 (up to 1e9)": _within(boxes.score) & (boxes.score >= 0),
    }
    for demand, met in demands.items():
        bad = np.flatnonzero(~met)
        if len(bad):
            sample = table.sample[bad[0]]
            number = bad[0] - np.searchsorted(table.sample, sample)
            others = f" and {len(bad) - 1} more boxes" if len(bad) > 1 else ""
            raise ValueError(
                f"expected {demand} in every box of {path}, box {number} of sample {tokens[sample]}{others} "
                "break this; mend or remove them"
            )


def _within(values: np.ndarray) -> np.ndarray:
    """Whether numbers are finite and not out of all proportion."""
    return np.abs(values) <= _GREATEST
