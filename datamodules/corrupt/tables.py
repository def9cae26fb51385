"""The thirteen tables of a copy: linked where nothing of them is new, else filtered and corrected record by record."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.corrupt.files import link, write_lines
from datamodules.tables import TABLES, read_records


@dataclass(eq=False)
class TableChanges:
    """How the tables of the copy differ from the source's.

    Attributes:
        scenes, samples: tokens that are kept; None for all.
        harmed: channels of which only the measurements in ``given`` are kept: the others would be clean in a corrupted
            copy (pictures between keyframes, whatever follows a scene's last keyframe).
        given: names of the files that belong to a keyframe, so were given to the faults.
        changed: by file name, new fields of its ``sample_data`` and of its calibration.
    """

    scenes: set[str] | None
    samples: set[str] | None
    harmed: set[str]
    given: set[str]
    changed: dict[str, dict]
    num_removed: int = 0
    _poses: set[str] = field(default_factory=set)
    _instances: set[str] = field(default_factory=set)
    _calibrations: dict[str, tuple[str, dict]] = field(default_factory=dict)
    _harmed_calibrations: set[str] = field(default_factory=set)

    @property
    def filtered(self) -> bool:
        return self.scenes is not None

    def others(self, source: Path) -> Iterator[str]:
        """Names of the files that the copy's tables keep although they belong to no keyframe."""
        self._harmed_calibrations = self._calibrations_of(source)
        for row in read_records(source / "sample_data.json"):
            if row["filename"] not in self.given and self._keeps(row) and not self._clean(row):
                yield row["filename"]

    def write(self, source: Path, out: Path) -> None:
        """Write or link every table from one version folder into another's, ``splits.json`` included.

        Other files of the folder (labels of points, for one) speak of the unharmed data and stay behind.
        """
        version = source.name
        self._harmed_calibrations = self._calibrations_of(source)
        # The order matters: measurements tell which poses and calibrations are needed, annotations which instances.
        rules: dict[str, tuple[bool, Callable[[Iterable[dict]], Iterable[dict]]]] = {
            "sample_data": (self.filtered or bool(self.harmed or self.changed), self._sample_data(source)),
            "ego_pose": (self.filtered or bool(self.harmed), self._chosen("token", self._poses)),
            "calibrated_sensor": (bool(self.changed), self._calibrated),
            "scene": (self.filtered, self._chosen("token", self.scenes)),
            "sample": (self.filtered, self._chosen("token", self.samples)),
            "sample_annotation": (self.filtered, self._annotations),
            "instance": (self.filtered, self._chosen("token", self._instances)),
        }
        for table in (*rules, *(name for name in TABLES if name not in rules)):
            is_new, rule = rules.get(table, (False, None))
            name = f"{version}/{table}.json"
            if is_new:
                write_lines(out, name, _lines(rule(read_records(source / f"{table}.json"))))
            else:
                link(out, name, source / f"{table}.json")
        if (source / "splits.json").is_file():
            link(out, f"{version}/splits.json", source / "splits.json")

    def _sample_data(self, source: Path) -> Callable[[Iterable[dict]], Iterable[dict]]:
        def rows(records: Iterable[dict]) -> Iterator[dict]:
            kept = read_records(source / "sample_data.json") if self.harmed else ()
            around = {row["token"]: (row["prev"], row["next"]) for row in kept if self._keeps(row) and self._clean(row)}
            self.num_removed = len(around)
            for row in records:
                if not self._keeps(row) or row["token"] in around:
                    continue
                row["prev"] = _past_removed(row["prev"], around, 0)
                row["next"] = _past_removed(row["next"], around, 1)
                self._poses.add(row["ego_pose_token"])
                yield self._changed_row(row)

        return rows

    def _calibrations_of(self, source: Path) -> set[str]:
        """Tokens of the calibrations of harmed channels."""
        sensors = {row["token"] for row in read_records(source / "sensor.json") if row["channel"] in self.harmed}
        rows = read_records(source / "calibrated_sensor.json")
        return {row["token"] for row in rows if row["sensor_token"] in sensors}

    def _keeps(self, row: dict) -> bool:
        return self.samples is None or row["sample_token"] in self.samples

    def _clean(self, row: dict) -> bool:
        """Whether it is of a harmed sensor but was given to no fault."""
        return row["calibrated_sensor_token"] in self._harmed_calibrations and row["filename"] not in self.given

    def _changed_row(self, row: dict) -> dict:
        change = self.changed.get(row["filename"], {})
        row |= {key: change[key] for key in ("timestamp", "height", "width") if key in change}
        calibration = {key: change[key] for key in ("translation", "rotation", "camera_intrinsic") if key in change}
        if calibration:
            token = hashlib.blake2b(f"calibration of {row['token']}".encode(), digest_size=16).hexdigest()
            self._calibrations[token] = (row["calibrated_sensor_token"], calibration)
            row["calibrated_sensor_token"] = token
        return row

    def _calibrated(self, records: Iterable[dict]) -> Iterator[dict]:
        """The source's calibrations, then those of single measurements that a fault gave another one."""
        known = {}
        for row in records:
            known[row["token"]] = row
            yield row
        for token, (origin, calibration) in self._calibrations.items():
            yield {**known[origin], **calibration, "token": token}

    def _annotations(self, records: Iterable[dict]) -> Iterator[dict]:
        for row in records:
            if self._keeps(row):
                self._instances.add(row["instance_token"])
                yield row

    @staticmethod
    def _chosen(key: str, tokens: set[str] | None) -> Callable[[Iterable[dict]], Iterable[dict]]:
        # The set may still be empty here; it is full when the rows are asked for.
        return lambda records: (row for row in records if row[key] in tokens)


def _past_removed(token: str, around: dict[str, tuple[str, str]], side: int) -> str:
    while token in around:
        token = around[token][side]
    return token


def _lines(rows: Iterable[dict]) -> Iterator[str]:
    yield "["
    for number, row in enumerate(rows):
        yield ("," if number else "") + "\n" + json.dumps(row, separators=(",", ":"))
    yield "\n]\n"
