"""Which cells of a view's feature map look at a point."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from datamodules.batch import PointBatch

FLOPS_PER_POINT = 36
"""Two 3x3 products with their sums, and two divisions, of one point in one view."""
MIN_DEPTH_M = 0.5


@dataclass(frozen=True, eq=False)
class PosedViews:
    """Where the cameras of R (sample, view) rows were and how they look.

    Attributes:
        image_from_camera: of pictures of ``image_size_px``, whatever size an encoder is fed.
        ego_from_camera: rigid, or scaled under BEV augmentation.
        sample: which sample of the batch each row belongs to.
        image_size_px: height and width that ``image_from_camera`` refers to.
    """

    image_from_camera: Float[Tensor, "r 3 3"]
    ego_from_camera: Float[Tensor, "r 4 4"]
    sample: Int64[Tensor, "r"]
    image_size_px: tuple[int, int]

    def __len__(self) -> int:
        return len(self.sample)

    def posed(self, rows: Int64[Tensor, "k"] | Bool[Tensor, "r"]) -> "PosedViews":
        """Some of the rows."""
        poses = (self.image_from_camera[rows], self.ego_from_camera[rows])
        return PosedViews(*poses, self.sample[rows], self.image_size_px)


@dataclass(frozen=True, eq=False)
class SeenPoints:
    """One row for each point in each view that sees it.

    Attributes:
        view, point: which.
        cell: line * columns + column of the view's map.
        depth_m: along the optical axis.
    """

    view: Int64[Tensor, "s"]
    point: Int64[Tensor, "s"]
    cell: Int64[Tensor, "s"]
    depth_m: Float[Tensor, "s"]


@torch.no_grad()
def seen_points(xyz_m: Float[Tensor, "p 3"], views: PosedViews, size: tuple[int, int]) -> SeenPoints:
    """Which of the points lies in which cell of which view, whatever sample the views are of.

    Args:
        xyz_m: in the ego frame of the views.
        size: lines and columns of the map that spans the picture.
    """
    cell_px = (views.image_size_px[0] / size[0], views.image_size_px[1] / size[1])
    with torch.autocast(xyz_m.device.type, enabled=False):  # eight bits are too few for a pixel
        camera_from_ego = torch.linalg.inv_ex(views.ego_from_camera.float())[0]
        turned = torch.einsum("vij,pj->vpi", camera_from_ego[:, :3, :3], xyz_m.float())
        camera = turned + camera_from_ego[:, None, :3, 3]
        image = torch.einsum("vij,vpj->vpi", views.image_from_camera.float(), camera)
    depth_m = camera[..., 2]
    ahead = depth_m > MIN_DEPTH_M
    scale = torch.where(ahead, image[..., 2], 1.0)
    # Pixel centres are whole numbers, so a picture spans -0.5 .. size - 0.5.
    column = torch.floor((image[..., 0] / scale + 0.5) / cell_px[1])
    line = torch.floor((image[..., 1] / scale + 0.5) / cell_px[0])
    inside = ahead & (column >= 0) & (column < size[1]) & (line >= 0) & (line < size[0])
    view, point = torch.nonzero(inside, as_tuple=True)
    cell = line[view, point].long() * size[1] + column[view, point].long()
    return SeenPoints(view, point, cell, depth_m[view, point])


def seen_by_own_views(points: PointBatch, views: PosedViews, size: tuple[int, int]) -> SeenPoints:
    """The same of a batch: each point by the views of its own sample.

    Args:
        points: in the ego frame of the views, of any number of samples.
        size: lines and columns of the map that spans the picture.
    """
    index = torch.zeros(0, dtype=torch.int64, device=views.sample.device)
    parts = [SeenPoints(index, index, index, views.ego_from_camera.new_zeros(0, dtype=torch.float32))]
    for which in torch.unique(views.sample).tolist():
        rows, own = (torch.nonzero(sample == which)[:, 0] for sample in (views.sample, points.sample))
        seen = seen_points(points.points[own, :3], views.posed(rows), size)
        parts.append(replace(seen, view=rows[seen.view], point=own[seen.point]))
    return SeenPoints(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})
