"""One radar sweep, and nuScenes' radar ``.pcd`` files: 18 fields of mixed types, binary."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, Int16

from sensors.transforms import RigidTransform

PCD_FIELDS = (
    *(("x", "<f4"), ("y", "<f4"), ("z", "<f4")),
    *(("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4")),
    *(("vx", "<f4"), ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4")),
    *(("is_quality_valid", "i1"), ("ambig_state", "i1"), ("x_rms", "i1"), ("y_rms", "i1")),
    *(("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1")),
)
_CODES = ("is_quality_valid", "ambig_state", "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms")
# The same 43 bytes as PCD_FIELDS, with neighbours of one type as one field: what is copied moves as two items per point
# instead of eight.
_STORED = np.dtype(list(PCD_FIELDS))
_ROW = np.dtype([("xyz", "V12"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs_and_velocities", "V20"), ("codes", "i1", 8)])
_MARKER = b"DATA binary\n"
_USUAL_BYTES = 1 << 14


@dataclass(frozen=True, eq=False)
class RadarSweep:
    """One measurement of one radar, in its own sensor frame (x along the boresight, y left, z always 0).

    Attributes:
        velocity_raw_mps: x and y relative to the moving sensor.
        velocity_mps: x and y after ego-motion compensation, exactly radial.
        rcs_dbsm: radar cross-section.
        track_id: the file's ``id``.
        dyn_prop: 0 moving, 1 stationary, 2 oncoming, 3 stationary candidate, 4 unknown, 5 crossing stationary,
            6 crossing moving, 7 stopped.
        is_quality_valid, ambig_state, invalid_state, pdh0, x_rms, y_rms, vx_rms, vy_rms: nuScenes' codes, as stored.
        lag_s: keyframe reference time minus measurement time; positive for an older sweep.
        ego_from_radar: keyframe ego frame from the sensor at its own time, chained through global.
    """

    xyz_m: Float[np.ndarray, "n 3"]
    velocity_raw_mps: Float[np.ndarray, "n 2"]
    velocity_mps: Float[np.ndarray, "n 2"]
    rcs_dbsm: Float[np.ndarray, "n"]
    track_id: Int16[np.ndarray, "n"]
    dyn_prop: Int8[np.ndarray, "n"]
    is_quality_valid: Int8[np.ndarray, "n"]
    ambig_state: Int8[np.ndarray, "n"]
    invalid_state: Int8[np.ndarray, "n"]
    pdh0: Int8[np.ndarray, "n"]
    x_rms: Int8[np.ndarray, "n"]
    y_rms: Int8[np.ndarray, "n"]
    vx_rms: Int8[np.ndarray, "n"]
    vy_rms: Int8[np.ndarray, "n"]
    lag_s: float
    ego_from_radar: RigidTransform

    def __len__(self) -> int:
        return len(self.rcs_dbsm)

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "k"]) -> "RadarSweep":
        """The points of a mask or of an index array."""
        arrays = [field.name for field in fields(self) if field.name not in ("lag_s", "ego_from_radar")]
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})

    def to_ego(self) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 2"]]:
        """Points and compensated velocities in the keyframe's ego frame: velocities turn and do not shift."""
        flat = np.concatenate([self.velocity_mps, np.zeros_like(self.velocity_mps[:, :1])], axis=1)
        return self.ego_from_radar.points(self.xyz_m), self.ego_from_radar.vectors(flat)[:, :2]

    def passes_filter(
        self, invalid_states: Sequence[int], dyn_props: Sequence[int], ambig_states: Sequence[int]
    ) -> Bool[np.ndarray, "n"]:
        """Points whose three codes are all among the given ones; a mask, never global state as in the devkit."""
        kept = np.isin(self.invalid_state, invalid_states) & np.isin(self.dyn_prop, dyn_props)
        return kept & np.isin(self.ambig_state, ambig_states)

    def passes_default_filter(self) -> Bool[np.ndarray, "n"]:
        """The devkit's default: invalid_state 0, dyn_prop 0..6, ambig_state 3. It drops stopped objects (7)."""
        return self.passes_filter((0,), range(7), (3,))


def read_radar_rows(path: Path) -> np.ndarray:
    """Every point of a nuScenes radar file as it is stored: a structured array of PCD_FIELDS, read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is not nuScenes' radar header, or the data end too early.
    """
    encoded = _content(path)
    marker = encoded.find(_MARKER)
    if marker < 0:
        raise ValueError(f"expected a binary PCD header in {path}, got none; copy the file again")
    start = marker + len(_MARKER)
    num_points, problem = _points_in_header(encoded[:marker])
    if problem:
        raise ValueError(problem.format(path=path))
    if len(encoded) - start < num_points * _STORED.itemsize:
        raise ValueError(
            f"expected {num_points} points of {_STORED.itemsize} bytes in {path}, got {len(encoded) - start} bytes; "
            "the file is cut off: copy it again"
        )
    return np.frombuffer(encoded, _STORED, num_points, start)


def read_radar(path: Path, lag_s: float, ego_from_radar: RigidTransform) -> RadarSweep:
    """Read every point of a nuScenes radar file, unfiltered; points with a NaN or infinite number are left out.

    A file whose first point is NaN is nuScenes' way to write an empty measurement. The arrays of codes are read-only
    views of the file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is not nuScenes' radar header, or the data end too early.
    """
    rows = read_radar_rows(path).view(_ROW)
    xyz_m, reals, finite = _reals(rows)
    if not finite:
        finite_rows = np.isfinite(xyz_m).all(axis=1) & np.isfinite(reals).all(axis=1)
        rows = rows[:0] if np.isnan(xyz_m[0, 0]) else rows[finite_rows]
        xyz_m, reals, _ = _reals(rows)
    quality, ambiguity, x_rms, y_rms, invalidity, pdh0, vx_rms, vy_rms = rows["codes"].T
    return RadarSweep(
        xyz_m=xyz_m,
        velocity_raw_mps=reals[:, 1:3],
        velocity_mps=reals[:, 3:],
        rcs_dbsm=reals[:, 0],
        track_id=rows["id"],
        dyn_prop=rows["dyn_prop"],
        is_quality_valid=quality,
        ambig_state=ambiguity,
        invalid_state=invalidity,
        pdh0=pdh0,
        x_rms=x_rms,
        y_rms=y_rms,
        vx_rms=vx_rms,
        vy_rms=vy_rms,
        lag_s=lag_s,
        ego_from_radar=ego_from_radar,
    )


def _content(path: Path) -> bytes:
    """All bytes of a file, without Python's file objects: a sample has thirty such files, which would cost more."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = block = os.read(descriptor, _USUAL_BYTES)
        while len(block) == _USUAL_BYTES:
            block = os.read(descriptor, _USUAL_BYTES)
            content += block
    finally:
        os.close(descriptor)
    return content


def _reals(rows: np.ndarray) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 5"], bool]:
    """Positions; RCS and velocities; and whether all of these numbers are finite."""
    xyz, reals = rows["xyz"].copy().view("<f4"), rows["rcs_and_velocities"].copy().view("<f4")
    # A sum of squares is not finite where one number is not, and is much cheaper than looking at each.
    return xyz.reshape(-1, 3), reals.reshape(-1, 5), math.isfinite(xyz.dot(xyz) + reals.dot(reals))


@lru_cache(maxsize=1024)
def _points_in_header(header: bytes) -> tuple[int, str]:
    """The number of points, and what is wrong with the header where something is.

    Headers of one version differ in that number only, so that almost none is looked at twice.
    """
    words = dict(line.split(" ", 1) for line in header.decode("ascii", "replace").splitlines() if " " in line)
    expected = " ".join(name for name, _ in PCD_FIELDS)
    if words.get("FIELDS") != expected:
        return 0, f"expected the radar fields '{expected}' in {{path}}, got '{_braced(words.get('FIELDS'))}'"
    if not words.get("POINTS", "").strip().isdigit():
        return 0, f"expected a number of POINTS in the header of {{path}}, got '{_braced(words.get('POINTS'))}'"
    return int(words["POINTS"]), ""


def _braced(text: str | None) -> str:
    return str(text)[:200].replace("{", "{{").replace("}", "}}")


def encode_radar(sweep: RadarSweep) -> bytes:
    """The bytes of a nuScenes radar ``.pcd``; an empty sweep is written as one NaN point, as nuScenes does."""
    rows = np.zeros(max(len(sweep), 1), _ROW)
    if len(sweep):
        reals = np.column_stack([sweep.rcs_dbsm, sweep.velocity_raw_mps, sweep.velocity_mps])
        rows["xyz"] = np.ascontiguousarray(sweep.xyz_m, "<f4").view("V12")[:, 0]
        rows["rcs_and_velocities"] = np.ascontiguousarray(reals, "<f4").view("V20")[:, 0]
        rows["dyn_prop"], rows["id"] = sweep.dyn_prop, sweep.track_id
        rows["codes"] = np.stack([getattr(sweep, name) for name in _CODES], axis=1)
    else:
        rows["xyz"], rows["rcs_and_velocities"] = (np.full(k, np.nan, "<f4").tobytes() for k in (3, 5))
    types = {"f": "F", "i": "I"}
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS {' '.join(name for name, _ in PCD_FIELDS)}\n"
        f"SIZE {' '.join(code[-1] for _, code in PCD_FIELDS)}\n"
        f"TYPE {' '.join(types[code[-2]] for _, code in PCD_FIELDS)}\n"
        f"COUNT {' '.join('1' for _ in PCD_FIELDS)}\n"
        f"WIDTH {len(rows)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(rows)}\nDATA binary\n"
    )
    # nuScenes' own files are padded with zeros, and the devkit asserts that something follows the last point.
    return header.encode("ascii") + rows.tobytes() + b"\0"
