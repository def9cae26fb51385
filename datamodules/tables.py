"""nuScenes' JSON tables read as a stream of records, and joins by token.

The full trainval release has 2.6 million rows of ``sample_data``: a table is therefore decoded record by record and
kept as columns, never as a list of dictionaries.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene"),
    *("sample", "sample_data", "sample_annotation", "map"),
)
"""The thirteen tables of every nuScenes version."""

_COLUMNS: dict[str, dict[str, str]] = {
    "category": {"token": "text", "name": "text"},
    "attribute": {"token": "text", "name": "text"},
    "instance": {"token": "text", "category_token": "text"},
    "sensor": {"token": "text", "channel": "text"},
    "calibrated_sensor": {
        **{"token": "text", "sensor_token": "text"},
        **{"translation": "floats 3", "rotation": "floats 4", "camera_intrinsic": "matrix"},
    },
    "ego_pose": {"token": "text", "translation": "floats 3", "rotation": "floats 4"},
    "log": {"token": "text", "location": "text"},
    "scene": {"token": "text", "name": "text", "description": "text", "log_token": "text"},
    "sample": {"token": "text", "timestamp": "int", "scene_token": "text"},
    "sample_data": {
        **{"token": "text", "sample_token": "text", "ego_pose_token": "text", "calibrated_sensor_token": "text"},
        **{"timestamp": "int", "is_key_frame": "int", "filename": "text", "prev": "text"},
        **{"width": "int", "height": "int"},
    },
    "sample_annotation": {
        **{"token": "text", "sample_token": "text", "instance_token": "text", "visibility_token": "text"},
        **{"attribute_tokens": "first", "translation": "floats 3", "size": "floats 3", "rotation": "floats 4"},
        **{"prev": "text", "next": "text", "num_lidar_pts": "int", "num_radar_pts": "int"},
    },
}
"""The columns that the index needs of each table; the other two tables only have to be there."""

_CHUNK = 1 << 20
_BLOCK = 1 << 15
_SEPARATORS = re.compile(r"[\s,]*")


def read_columns(folder: Path, table: str) -> dict[str, np.ndarray]:
    """The needed columns of one table, in the file's order; texts as fixed-width UTF-8 bytes.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is no JSON list of records with these fields.
    """
    path = folder / f"{table}.json"
    kinds = _COLUMNS[table]
    records = read_records(path)
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    num_read = 0
    while block := list(islice(records, _BLOCK)):
        for name, kind in kinds.items():
            try:
                blocks[name].append(_column([record[name] for record in block], kind))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(_misfit(path, name, kind, block, num_read)) from error
        num_read += len(block)
    return {
        name: np.concatenate(parts) if (parts := blocks[name]) else _column([], kind) for name, kind in kinds.items()
    }


def read_records(path: Path) -> Iterator[dict]:
    """The records of a JSON list, decoded one after the other from a text of any length."""
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("["):
                raise ValueError(f"expected a JSON list in {path}, got '{text[:20]}'; copy the table again")
            position = 1
            while True:
                position = _SEPARATORS.match(text, position).end()
                if text[position : position + 1] == "]":
                    return
                try:
                    record, position = decode(text, position)
                except json.JSONDecodeError as error:
                    more = file.read(_CHUNK)
                    if not more or len(text) - position > _CHUNK:
                        what = " ".join(text[position : position + 60].split())
                        raise ValueError(
                            f"expected a whole JSON list in {path}, got a broken record at '{what}'; "
                            "copy the table again"
                        ) from error
                    text, position = text[position:] + more, 0
                    continue
                yield record
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected the table {path}, found none; copy it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got other bytes; copy the table again") from error


def _column(values: list, kind: str) -> np.ndarray:
    if kind == "text":
        return np.array([value.encode() for value in values], dtype="S" if values else "S1")
    if kind == "first":
        return np.array([value[0].encode() if value else b"" for value in values], dtype="S" if values else "S1")
    if kind == "int":
        return np.array(values, dtype=np.int64).reshape(len(values))
    if kind == "matrix":
        return np.array([value if value else np.zeros((3, 3)) for value in values], np.float64).reshape(-1, 3, 3)
    numbers = np.array(values, np.float64).reshape(len(values), int(kind.split()[1]))
    if not np.isfinite(numbers).all():
        raise ValueError
    return numbers


def _misfit(path: Path, name: str, kind: str, block: list, start: int) -> str:
    """Which record of a block does not hold a field of this kind, in one line."""
    for offset, record in enumerate(block):
        try:
            _column([record[name]], kind)
        except KeyError:
            return f"expected the field '{name}' in every record of {path}, record {start + offset} has none"
        except (TypeError, ValueError, AttributeError):
            got = record.get(name) if isinstance(record, dict) else record
            what = {"text": "a text", "first": "a list of tokens", "int": "an integer", "matrix": "a 3x3 matrix"}
            meant = what.get(kind, f"{kind[-1]} finite numbers")
            return f"expected {meant} as '{name}' in {path}, record {start + offset} has {str(got)[:60]!r}"
    raise AssertionError("every record of the block fits its kind")


class TokenRows:
    """Where each token of a table stands.

    Args:
        table: its name, for messages.
        tokens: one per row.

    Raises:
        ValueError: a token occurs twice.
    """

    def __init__(self, table: str, tokens: np.ndarray):
        self.table = table
        self._order = np.argsort(tokens, kind="stable")
        self._sorted = tokens[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            raise ValueError(
                f"expected every token of {table}.json once, got '{self._sorted[twice[0]].decode()}' twice; "
                "copy the table again"
            )

    def rows(self, tokens: np.ndarray, referrer: str, optional: bool = False) -> Int64[np.ndarray, "n"]:
        """Rows of these tokens.

        Args:
            referrer: table and field that name them, for messages.
            optional: the empty token is allowed and gives -1.

        Raises:
            ValueError: a token is not in the table.
        """
        if not len(self._sorted):
            rows, found = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), bool)
        else:
            places = np.minimum(np.searchsorted(self._sorted, tokens), len(self._sorted) - 1)
            rows, found = self._order[places].astype(np.int64), self._sorted[places] == tokens
        empty = tokens == b"" if optional else np.zeros(len(tokens), bool)
        lost = np.flatnonzero(~found & ~empty)
        if len(lost):
            raise ValueError(
                f"expected the token '{tokens[lost[0]].decode()}' of {referrer} in {self.table}.json, found none "
                f"({len(lost)} such references); the tables do not belong together: copy them again"
            )
        return np.where(empty, -1, rows)
