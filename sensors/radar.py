"""One radar sweep, and nuScenes' radar ``.pcd`` files: 18 fields of mixed types, binary."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Int16

from sensors.transforms import RigidTransform

PCD_FIELDS = (
    *(("x", "<f4"), ("y", "<f4"), ("z", "<f4")),
    *(("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4")),
    *(("vx", "<f4"), ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4")),
    *(("is_quality_valid", "i1"), ("ambig_state", "i1"), ("x_rms", "i1"), ("y_rms", "i1")),
    *(("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1")),
)
_ROW = np.dtype(list(PCD_FIELDS))
_STATUS = ("dyn_prop", "is_quality_valid", "ambig_state", "invalid_state", "pdh0", "x_rms", "y_rms", "vx_rms", "vy_rms")


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

    def passes_default_filter(self) -> Bool[np.ndarray, "n"]:
        """The devkit's default: invalid_state 0, dyn_prop 0..6, ambig_state 3. It drops stopped objects (dyn_prop 7).

        Off by default here; a property of the reader, never global state.
        """
        return (self.invalid_state == 0) & (self.dyn_prop >= 0) & (self.dyn_prop <= 6) & (self.ambig_state == 3)


def read_radar(path: Path, lag_s: float, ego_from_radar: RigidTransform) -> RadarSweep:
    """Read every point of a nuScenes radar file, unfiltered.

    A file whose first point is NaN is nuScenes' way to write an empty measurement.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is not nuScenes' radar header, or the data end too early.
    """
    encoded = path.read_bytes()
    marker = b"DATA binary\n"
    start = encoded.find(marker)
    if start < 0:
        raise ValueError(f"expected a binary PCD header in {path}, got none; copy the file again")
    header = dict(line.split(" ", 1) for line in encoded[:start].decode("ascii", "replace").splitlines() if " " in line)
    expected = " ".join(name for name, _ in PCD_FIELDS)
    if header.get("FIELDS") != expected:
        raise ValueError(f"expected the radar fields '{expected}' in {path}, got '{header.get('FIELDS')}'")
    if not header.get("POINTS", "").strip().isdigit():
        raise ValueError(f"expected a number of POINTS in the header of {path}, got '{header.get('POINTS')}'")
    num_points = int(header["POINTS"])
    body = encoded[start + len(marker) :]
    if len(body) < num_points * _ROW.itemsize:
        raise ValueError(
            f"expected {num_points} points of {_ROW.itemsize} bytes in {path}, got {len(body)} bytes; the file is cut "
            "off: copy it again"
        )
    rows = np.frombuffer(body, _ROW, count=num_points)
    if num_points and np.isnan(rows["x"][0]):
        rows = rows[:0]
    finite = np.isfinite(np.stack([rows[name] for name in ("x", "y", "z", "rcs", "vx", "vy", "vx_comp", "vy_comp")]))
    return _sweep_of_rows(rows[finite.all(axis=0)], lag_s, ego_from_radar)


def _sweep_of_rows(rows: np.ndarray, lag_s: float, ego_from_radar: RigidTransform) -> RadarSweep:
    def columns(*names):
        return np.stack([rows[name] for name in names], axis=1).astype(np.float32)

    return RadarSweep(
        xyz_m=columns("x", "y", "z"),
        velocity_raw_mps=columns("vx", "vy"),
        velocity_mps=columns("vx_comp", "vy_comp"),
        rcs_dbsm=rows["rcs"].astype(np.float32),
        track_id=rows["id"].astype(np.int16),
        **{name: rows[name].copy() for name in _STATUS},
        lag_s=lag_s,
        ego_from_radar=ego_from_radar,
    )


def encode_radar(sweep: RadarSweep) -> bytes:
    """The bytes of a nuScenes radar ``.pcd``; an empty sweep is written as one NaN point, as nuScenes does."""
    rows = np.zeros(max(len(sweep), 1), _ROW)
    if len(sweep):
        for i, name in enumerate(("x", "y", "z")):
            rows[name] = sweep.xyz_m[:, i]
        for i, name in enumerate(("vx", "vy")):
            rows[name], rows[f"{name}_comp"] = sweep.velocity_raw_mps[:, i], sweep.velocity_mps[:, i]
        rows["rcs"], rows["id"] = sweep.rcs_dbsm, sweep.track_id
        for name in _STATUS:
            rows[name] = getattr(sweep, name)
    else:
        for name in ("x", "y", "z", "rcs", "vx", "vy", "vx_comp", "vy_comp"):
            rows[name] = np.nan
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
