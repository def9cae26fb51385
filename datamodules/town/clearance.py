"""Who would be in whose way: outlines on the ground of everybody, over the length of a scene."""

import numpy as np
from jaxtyping import Bool, Float

from datamodules.town.actors import Actor, Motion

_STEP_S = 0.2
_BEFORE_S = 0.6
"""Sweeps reach back before the first keyframe."""
_EGO_SIZE_M, _EGO_CENTER_M = (4.4, 1.9), 1.1
"""Length and width of the vehicle itself, and how far its middle lies before the rear axle."""
_FIRST_ROWS = 256


class Clearance:
    """The tracks of all that has been let in; row 0 is the vehicle itself."""

    def __init__(self, ego: Motion, duration_s: float):
        self._times = np.arange(-_BEFORE_S, duration_s + _STEP_S, _STEP_S)
        self._tracks = np.zeros((_FIRST_ROWS, len(self._times), 3))
        self._half = np.zeros((_FIRST_ROWS, 2))
        self._count = 0
        track = self._track(ego)
        ahead = np.stack([np.cos(track[:, 2]), np.sin(track[:, 2])], axis=1)
        track[:, :2] += _EGO_CENTER_M * ahead
        self._put(0, track, np.array(_EGO_SIZE_M) / 2)

    def is_free(
        self, motion: Motion, size_lw_m, margin_m: tuple[float, float] = (0.0, 0.0), but: int | None = None
    ) -> bool:
        """Whether an outline, made longer and wider by the margin at each side, touches nobody's at any time.

        Args:
            but: row of an actor to leave out, as ``add`` returned it.
        """
        half, track = np.array(size_lw_m) / 2 + margin_m, self._track(motion)
        away = self._tracks[: self._count, :, :2] - track[:, :2]
        reach = np.hypot(*self._half[: self._count].T) + np.hypot(*half)
        near = (away**2).sum(axis=2).min(axis=1) < reach**2
        if but is not None:
            near[but] = False
        rows = np.flatnonzero(near)
        return not (len(rows) and outlines_touch(track, half, self._tracks[rows], self._half[rows, None]).any())

    def add(self, motion: Motion, size_lw_m) -> int:
        """Let somebody in; the row says who."""
        if self._count == len(self._half):
            self._tracks, self._half = (np.concatenate([x, np.zeros_like(x)]) for x in (self._tracks, self._half))
        self._put(self._count, self._track(motion), np.array(size_lw_m) / 2)
        return self._count - 1

    def move(self, row: int, motion: Motion) -> None:
        """Another motion for somebody who is in."""
        self._tracks[row] = self._track(motion)

    def admit(self, actors: list[Actor]) -> list[Actor]:
        """Those who touch none of the earlier ones, in order; they take the rows after the present ones."""
        admitted = []
        for actor in actors:
            if self.is_free(actor.motion, actor.size_lwh_m[:2]):
                self.add(actor.motion, actor.size_lwh_m[:2])
                admitted.append(actor)
        return admitted

    def _put(self, row: int, track, half) -> None:
        self._tracks[row], self._half[row] = track, half
        self._count = max(self._count, row + 1)

    def _track(self, motion: Motion) -> Float[np.ndarray, "t 3"]:
        times = self._times if motion.moves else self._times[:1]
        poses = np.array([motion.pose(time_s) for time_s in times.tolist()])[:, [0, 1, 3]]
        return np.repeat(poses, len(self._times) // len(poses), axis=0)


def outlines_touch(
    pose_a: Float[np.ndarray, "*a 3"],
    half_a: Float[np.ndarray, "*b 2"],
    pose_b: Float[np.ndarray, "*c 3"],
    half_b: Float[np.ndarray, "*d 2"],
) -> Bool[np.ndarray, "*e"]:
    """Whether two rectangles share ground, by the separating axes of both.

    Args:
        pose_a, pose_b: x, y, yaw of the middles.
        half_a, half_b: half lengths and half widths; all four broadcast against each other.
    """
    turn = pose_b[..., 2] - pose_a[..., 2]
    c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    touching = np.ones(np.broadcast_shapes(turn.shape, half_a.shape[:-1], half_b.shape[:-1]), bool)
    for frame, mine, other in ((pose_a[..., 2], half_a, half_b), (pose_b[..., 2], half_b, half_a)):
        dx, dy = (pose_b[..., k] - pose_a[..., k] for k in range(2))
        along, across = dx * np.cos(frame) + dy * np.sin(frame), dy * np.cos(frame) - dx * np.sin(frame)
        touching &= np.abs(along) < mine[..., 0] + other[..., 0] * c + other[..., 1] * s
        touching &= np.abs(across) < mine[..., 1] + other[..., 0] * s + other[..., 1] * c
    return touching
