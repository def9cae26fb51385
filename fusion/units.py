"""What the eight units are made of: the modules of each branch, what they are fed, and what they cost.

The encoders inside know nothing of routing; the router knows nothing of encoders. This is what stands between.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from datamodules.batch import CameraBatch, PointBatch
from fusion.encoders.contract import ImageEncoder, PointEncoder
from fusion.encoders.guide import guide_scores
from fusion.encoders.guide_learned import GuideBev, GuideScore
from fusion.encoders.lift import Lift, ViewRows
from fusion.encoders.measured_depth import measured_depth, newest_sweep
from fusion.encoders.point_drop import drop_regions
from fusion.ops.flops import GIGA
from fusion.ops.projection import FLOPS_PER_POINT, PosedViews
from fusion.ops.sweeps import newest
from fusion.ops.thinning import thinned
from fusion.routing.plan import BRANCHES, FULL, LITE
from sensors.grid import BevGrid


class ViewBranches(nn.Module):
    """The six camera units: one encoder, fed the picture (full) or a smaller copy of it (lite); one joint lift.

    Args:
        encoder: shared by all views and both branches.
        lift: splats whatever views were computed.
        image_size_px: height and width of the batch's pictures.
        lite_scale: side of the lite picture as a share of the full one; None: there is no lite branch.
        depth_from_lidar: whether the points of a LiDAR that runs give the depth of the feature cells that they lie in.
        num_points: of a rich LiDAR sweep, for the price of that; see ``within_price``.
        scorer: learns which patches of an encoder with ``GuidedKeep`` are worked on, from the BEV of the model's
            ``camera_guide``; None: that sensor's points are counted.

    Attributes:
        guide: points that choose the patches of an encoder with ``GuidedKeep``, set for each batch; else None.
        guide_bev: what the ``scorer`` reads, set for each batch; None where the guide has not run.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        lift: Lift,
        image_size_px: Sequence[int],
        lite_scale: float | None = 0.5,
        depth_from_lidar: bool = False,
        num_points: int = 35_000,
        scorer: GuideScore | None = None,
    ):
        super().__init__()
        self.depth_from_lidar, self.num_points = depth_from_lidar, num_points
        if (encoder.channels, encoder.num_depths) != (lift.channels, lift.num_depths):
            raise ValueError(
                f"expected the lift to take the encoder's {encoder.channels} channels and {encoder.num_depths} depths, "
                f"got {lift.channels} and {lift.num_depths}; give both the same numbers"
            )
        self.encoder, self.lift = encoder, lift
        self.guide: PointBatch | None = None
        self.scorer = scorer
        self.guide_bev: GuideBev | None = None
        self.sizes_px = {FULL: (int(image_size_px[0]), int(image_size_px[1]))}
        if lite_scale is not None:
            self.sizes_px[LITE] = tuple(round(side * lite_scale) for side in self.sizes_px[FULL])
        for height, width in self.sizes_px.values():
            if height % encoder.stride or width % encoder.stride:
                raise ValueError(
                    f"expected image sides that are multiples of the encoder's stride, {encoder.stride}, in every "
                    f"branch, got {height}x{width}; change image_size_px or lite_scale"
                )

        # gflops() counts on a copy of the module: too slow for every step.
        measuring = num_points * FLOPS_PER_POINT / GIGA if depth_from_lidar else 0.0
        measuring += 0.0 if scorer is None else scorer.gflops()
        self.gflops_of = {
            branch: encoder.gflops(size) + lift.gflops(self._patches(branch)) + measuring
            for branch, size in self.sizes_px.items()
        }

    def gflops(self) -> dict[str, float]:
        """GFLOPs of one view by branch name: encoder and lift."""
        return {BRANCHES[branch]: gflops for branch, gflops in self.gflops_of.items()}

    def rows(
        self,
        branch: int,
        camera: CameraBatch,
        chosen: Int64[Tensor, "r"],
        gates: Float[Tensor, "r"],
        points: PointBatch | None = None,
    ) -> ViewRows:
        """Computed features of the chosen rows.

        Args:
            chosen: ``sample * number of views + view``.
            gates: of the same rows.
            points: of a LiDAR that runs, which give depths; None for none.

        Raises:
            ValueError: the batch's pictures have another size than the model was built and priced for.
        """
        size = tuple(camera.images.shape[-2:])
        if size != self.sizes_px[FULL]:
            raise ValueError(
                f"expected images of {self.sizes_px[FULL]} px (height, width) as the model was built for, got {size}; "
                "give model and data the same image_size_px"
            )
        images = camera.images.flatten(0, 1).index_select(0, chosen)
        views = PosedViews(
            camera.image_from_camera.flatten(0, 1).index_select(0, chosen),
            camera.ego_from_camera.flatten(0, 1).index_select(0, chosen),
            chosen // camera.images.shape[1],
            size,
        )
        if self.scorer is not None:
            self.encoder.method.scores = self.scorer(self.guide_bev, views, self._patches(branch))
        elif self.guide is not None:
            self.encoder.method.scores = guide_scores(self.guide, views, self._patches(branch))
        features = self.encoder(self._resized(images, branch))
        if self.scorer is not None:
            self.encoder.method.scores = self.encoder.method.scores.detach()  # copies must not find a graph
        measured_m = None
        if points is not None:
            measured_m = self.depths_of(points, views, tuple(features.context.shape[-2:]))
        return ViewRows(**vars(views), features=features, weight=gates, measured_m=measured_m)

    def within_price(self, points: PointBatch, only: Bool[Tensor, "b"] | None = None) -> PointBatch:
        """Points to measure depths with: of each sample's newest sweep at most as many as the price counts.

        Args:
            only: samples for which that holds; None for all.
        """
        if len(points.points) <= self.num_points:
            return points
        return thinned(newest_sweep(points, torch.ones_like(points.present)), self.num_points, only)

    def depths_of(
        self, points: PointBatch, views: PosedViews, feature_size: tuple[int, int]
    ) -> Float[Tensor, "r fh fw"]:
        """Depths of the feature cells of view rows, each from the newest sweep of its own sample alone."""
        asked = torch.zeros(len(points.present), dtype=torch.bool, device=views.sample.device)
        asked[views.sample] = True
        return measured_depth(newest_sweep(points, asked), views, feature_size)

    def _patches(self, branch: int) -> tuple[int, int]:
        height, width = self.sizes_px[branch]
        return height // self.encoder.stride, width // self.encoder.stride

    def _resized(self, images: Float32[Tensor, "r 3 h w"], branch: int) -> Float32[Tensor, "r 3 hh ww"]:
        """Area averaging: a picture made smaller without aliasing."""
        if branch == FULL:
            return images
        return functional.interpolate(images, size=self.sizes_px[branch], mode="area")


class PointBranches(nn.Module):
    """The LiDAR or the radar unit: an encoder of all sweeps (full), and a cheaper one of the newest sweep (lite).

    Args:
        full: takes every point.
        lite: takes the points of the newest sweep; None: there is no lite branch.
        num_points: of a rich sample with all sweeps; what prices are based on. Where a budget below 1 holds, a
            sample with more points is thinned to this many (``within_price``), so that prices bound its real cost.
        num_points_lite: the same for the newest sweep.
        newest_s: a point belongs to the newest sweep when it is at most this much older than the sample's newest one.
            For a set of radars, which do not measure at the same time, about one period.
        regions: coarse cells of which only the best share ``keep_regions`` is encoded; None encodes all. See
            ``fusion.encoders.point_drop.drop_regions``.
        keep_regions: in (0, 1].
        near_first: whether the nearest regions are the best; otherwise those with the most points.
    """

    def __init__(
        self,
        full: PointEncoder,
        lite: PointEncoder | None = None,
        num_points: int = 30_000,
        num_points_lite: int = 30_000,
        newest_s: float = 0.02,
        regions: BevGrid | None = None,
        keep_regions: float | int = 1.0,
        near_first: bool = False,
    ):
        super().__init__()
        if not 0 < keep_regions <= 1 or (keep_regions < 1 and regions is None):
            raise ValueError(f"expected keep_regions in (0, 1], below 1 with regions, got {keep_regions}; give a grid")
        self.full, self.lite, self.newest_s = full, lite, newest_s
        self.regions, self.keep_regions, self.near_first = regions, keep_regions, near_first
        if lite is not None and lite.channels != full.channels:
            raise ValueError(
                f"expected the lite encoder to give as many channels as the full one, {full.channels}, got "
                f"{lite.channels}; widths inside may differ"
            )
        self.num_points = {FULL: num_points, LITE: num_points_lite}
        # gflops() counts on a copy of the module: too slow for every step, and linear in the points.
        self._fixed_gflops = {branch: encoder.gflops(0) for branch, encoder in self.encoders().items()}
        self._point_gflops = {
            branch: encoder.gflops(1) - self._fixed_gflops[branch] for branch, encoder in self.encoders().items()
        }

    def encoders(self) -> dict[int, PointEncoder]:
        """Encoder of every existing branch."""
        return {FULL: self.full} if self.lite is None else {LITE: self.lite, FULL: self.full}

    def gflops(self) -> dict[str, float]:
        """GFLOPs of one sample with ``num_points`` points by branch name."""
        return {BRANCHES[branch]: self.gflops_of(branch, self.num_points[branch]) for branch in self.encoders()}

    def gflops_of(self, branch: int, num_points: int) -> float:
        """GFLOPs of one sample with ``num_points`` points."""
        return self._fixed_gflops[branch] + num_points * self._point_gflops[branch]

    def given(self, branch: int, points: PointBatch) -> PointBatch:
        """The points that the branch takes."""
        taken = points if branch == FULL else newest(points, self.newest_s)
        return taken if self.regions is None else drop_regions(taken, self.regions, self.keep_regions, self.near_first)

    def within_price(self, branch: int, given: PointBatch, only: Bool[Tensor, "b"] | None = None) -> PointBatch:
        """Of the points that the branch was given, at most ``num_points`` per sample: those that its price counts.

        Args:
            only: samples for which that holds; None for all.
        """
        return thinned(given, self.num_points[branch], only)
