"""A FusionModel of real parts, small enough to run many times, with every parameter at work."""

import torch

from fusion.encoders.lidar import LidarEncoder
from fusion.encoders.lift import Lift
from fusion.encoders.radar import RadarEncoder
from fusion.encoders.views import ViewEncoder
from fusion.heads.center import CenterHead
from fusion.model import FusionModel
from fusion.routing.router import Router
from fusion.trunk.merge import ChannelWeightedMerge, Merge
from fusion.trunk.trunk import BevTrunk
from fusion.units import PointBranches, ViewBranches
from sensors.grid import BevGrid
from tests.fusion.random_batch import random_batch

IMAGE_SIZE_PX = (32, 64)
BEV = BevGrid.square(48.0, 6.0)
PILLARS = BevGrid.square(48.0, 3.0)


def small_model(
    cameras: bool = True,
    lidar: bool = True,
    radar: bool = True,
    lite_lidar: bool = True,
    floor: tuple[str, ...] = (),
    weighted: bool = False,
) -> FusionModel:
    """Zero-initialised scales and tokens are set to random numbers, so that no part is silent."""
    torch.manual_seed(0)
    in_channels = {"camera": 8, "lidar": 12, "radar": 4}
    options = {"point_channels": (8,), "stages": ((12, 1, 2),)}
    lite = LidarEncoder(PILLARS, 12, point_channels=(4,), stages=((8, 0, 2),)) if lite_lidar else None
    radars = (RadarEncoder(BEV, 4, stages=((4, 0, 1),)), RadarEncoder(BEV, 4, point_channels=(4,), stages=((4, 0, 1),)))
    model = FusionModel(
        cameras=_views() if cameras else None,
        lidar=PointBranches(LidarEncoder(PILLARS, 12, **options), lite, 400, 200, newest_s=0.3) if lidar else None,
        radar=PointBranches(*radars, num_points=50, num_points_lite=20, newest_s=0.3) if radar else None,
        merge=ChannelWeightedMerge(in_channels, 12, BEV) if weighted else Merge(in_channels, 12, BEV, 8),
        trunk=BevTrunk(12, widths=(12, 16), depths=(1, 0), strides=(1, 2), out_channels=8, upsample=2),
        head=CenterHead(8, PILLARS, channels=8),
        router=Router(hidden=16, floor=floor),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("router"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def small_batch(num_samples: int = 2, seed: int = 0, lost: tuple[tuple[int, str], ...] = ()):
    return random_batch(num_samples, seed, IMAGE_SIZE_PX, depth_stride=8, lost=lost)


def _views() -> ViewBranches:
    encoder = ViewEncoder("resnet18", 8, 10, neck_channels=8, backbone_options={"channels": [8, 8, 16, 16]})
    return ViewBranches(encoder, Lift(BEV, 8, (1.0, 61.0), 10), IMAGE_SIZE_PX)
