"""How tests compare frames: digests, and one number for how much harm was done."""

import hashlib
from dataclasses import fields, is_dataclass, replace

import cv2
import numpy as np

from sensors.frame import Frame
from sensors.rig import CHANNELS
from sensors.transforms import RigidTransform
from tests.sensors.toy_frames import ListHistory, toy_frame

LOST_SENSOR = 300.0


def arrays_of(value):
    """All numpy arrays in a frame, by path."""
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from arrays_of(value[key])
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays_of(item)


def digest(frame: Frame) -> str:
    """Changes when any array or the set of channels does."""
    state = hashlib.blake2b(digest_size=8)
    state.update(",".join(channel for channel in CHANNELS if frame.present(channel)).encode())
    for array in arrays_of(frame):
        state.update(str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def angle_deg(a: RigidTransform, b: RigidTransform) -> float:
    """Angle of the rotation between two poses."""
    return float(np.rad2deg(np.linalg.norm(cv2.Rodrigues(a.rotation.T @ b.rotation)[0])))


def drifting_scene(num_frames: int, **sizes: int) -> list[Frame]:
    """A scene in which every picture darkens and every point moves on a little from keyframe to keyframe."""
    last = toy_frame(seed=3, **sizes)
    frames = []
    for age in range(num_frames - 1, -1, -1):
        cameras = {
            channel: replace(image, pixels=np.clip(image.pixels.astype(int) - 4 * age, 0, 255).astype(np.uint8))
            for channel, image in last.cameras.items()
        }
        shift = np.array([0.5 * age, 0, 0], np.float32)
        lidar = tuple(replace(sweep, xyz_m=sweep.xyz_m + shift) for sweep in last.lidar)
        radars = {
            channel: tuple(replace(sweep, xyz_m=sweep.xyz_m + shift) for sweep in sweeps)
            for channel, sweeps in last.radars.items()
        }
        place = dict(token=f"token-{num_frames - 1 - age}", keyframe=num_frames - 1 - age, num_keyframes=num_frames)
        frames.append(replace(last, **place, cameras=cameras, lidar=lidar, radars=radars))
    return frames


def history_of(frames: list[Frame], index: int = -1) -> ListHistory:
    return ListHistory(frames, index % len(frames))


def harm(clean: Frame, harmed: Frame) -> float:
    """Grows with everything that was lost, added, moved, dimmed or turned."""
    total = LOST_SENSOR * sum(clean.present(channel) and not harmed.present(channel) for channel in CHANNELS)
    for channel in harmed.cameras:
        before, after = clean.cameras[channel], harmed.cameras[channel]
        total += cv2.absdiff(before.pixels, after.pixels).mean()
        total += angle_deg(before.ego_from_camera, after.ego_from_camera)
        total += np.linalg.norm(after.ego_from_camera.translation_m - before.ego_from_camera.translation_m)
        total += np.abs(after.image_from_camera - before.image_from_camera).mean()
    pairs = list(zip(clean.lidar, harmed.lidar, strict=False))
    for channel in harmed.radars:
        pairs += zip(clean.radars[channel], harmed.radars[channel], strict=True)
    return total + sum(_harm_of_sweep(before, after) for before, after in pairs)


def _harm_of_sweep(before, after) -> float:
    row_of = {row.tobytes(): i for i, row in enumerate(before.xyz_m)}
    intact = [(row_of[row.tobytes()], i) for i, row in enumerate(after.xyz_m) if row.tobytes() in row_of]
    lost, added = len(before) - len(intact), len(after) - len(intact)
    total = 100.0 * (lost + added) / len(before)
    pairs = np.arange(len(before))[:, None].repeat(2, axis=1) if len(before) == len(after) else np.array(intact)
    if len(pairs):
        old, new = pairs.T
        for name in ("xyz_m", "intensity", "velocity_mps", "rcs_dbsm"):
            if hasattr(before, name):
                total += np.abs(getattr(after, name)[new] - getattr(before, name)[old]).mean()
        poses = [getattr(sweep, "ego_from_lidar", None) or sweep.ego_from_radar for sweep in (before, after)]
        total += np.abs(poses[1].points(after.xyz_m[new]) - poses[0].points(before.xyz_m[old])).mean()
    return total
