"""Boxes of many samples as columns: what the metric works on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from sensors.boxes import Boxes, concatenate_boxes


@dataclass(frozen=True, eq=False)
class BoxTable:
    """N boxes of S samples, global frame, float64.

    Attributes:
        boxes: in the order of the file that they come from: it decides between equal scores.
        sample: row of each box's sample among the samples of the split.
    """

    boxes: Boxes
    sample: Int64[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "k"]) -> "BoxTable":
        """The boxes of a mask or of an index array."""
        return BoxTable(self.boxes.select(chosen), self.sample[chosen])


@dataclass(frozen=True, eq=False)
class RackTable:
    """R bicycle racks, global frame.

    Attributes:
        corner_m: the front upper left corner.
        edges_m: the three edges that leave it: backwards, to the right, down.
        sample: ascending.
    """

    corner_m: Float[np.ndarray, "r 3"]
    edges_m: Float[np.ndarray, "r 3 3"]
    sample: Int64[np.ndarray, "r"]

    @staticmethod
    def of_boxes(boxes: Boxes, sample: Int64[np.ndarray, "r"]) -> "RackTable":
        """Racks that stand upright, as all in nuScenes do."""
        corners = boxes.corners()
        edges = np.stack([corners[:, 4], corners[:, 1], corners[:, 3]], axis=1) - corners[:, :1]
        return RackTable(corners[:, 0], edges, sample)


@dataclass(frozen=True, eq=False)
class SplitLabels:
    """What a split is scored against.

    Attributes:
        tokens: of its S samples, in the order of the tables.
        ego_xy_m: where the vehicle was at each sample's LiDAR measurement, global frame.
        table: labels of the ten classes, by sample, nothing filtered.
        visibility: nuScenes' level 1 to 4 of each label; 0 where unknown.
        racks: bicycle racks.
        scene: row of each sample's scene among ``scene_names``.
        conditions: words about each scene, e.g. night, rain.
    """

    tokens: tuple[str, ...]
    ego_xy_m: Float[np.ndarray, "s 2"]
    table: BoxTable
    visibility: Int[np.ndarray, "n"]
    racks: RackTable
    scene: Int64[np.ndarray, "s"]
    scene_names: tuple[str, ...]
    conditions: tuple[frozenset[str], ...]


def joined(parts: Sequence[Boxes], samples: Sequence[int]) -> BoxTable:
    """One table of the boxes of some samples, in order, widened to float64.

    Args:
        samples: row of each part's sample.
    """
    boxes = concatenate_boxes(list(parts))
    counts = np.array([len(part) for part in parts], np.int64)
    return BoxTable(wide(boxes), np.repeat(np.asarray(samples, np.int64), counts))


def wide(boxes: Boxes) -> Boxes:
    """The same boxes in float64: float32 is worth 0.1 mm at 2 km."""
    names = ("center_m", "size_lwh_m", "yaw_rad", "velocity_mps", "score")
    return replace(boxes, **{name: np.asarray(getattr(boxes, name), np.float64) for name in names})


def windows(first: Int64[np.ndarray, "n"], count: Int64[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j) with ``first[i] <= j < first[i] + count[i]``, by i and then by j."""
    total = int(count.sum())
    owner = np.repeat(np.arange(len(count)), count)
    offset = first - (np.cumsum(count) - count)
    return owner, np.arange(total) + offset[owner]
