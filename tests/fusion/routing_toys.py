"""Prices, glances and plans that several routing tests share."""

import torch

from fusion.routing.costs import Prices
from fusion.routing.router import Glance
from sensors.health import HEALTH_FIELDS, THUMBNAIL_SIZE_PX
from sensors.rig import CHANNELS, NUM_CAMERAS, UNITS


def toy_prices(lite_lidar: bool = True, cameras: bool = True) -> Prices:
    """Always 2; a view 1 or 0.25; LiDAR 4 or 1; radar 0.5 or 0.1: 12.5 GFLOPs with everything on."""
    view = {"lite": 0.25, "full": 1.0} if cameras else {}
    lidar = {"lite": 1.0, "full": 4.0} if lite_lidar else {"full": 4.0}
    return Prices({"trunk": 1.5, "head": 0.5}, (*[view] * NUM_CAMERAS, lidar, {"lite": 0.1, "full": 0.5}))


def toy_glance(num_samples: int = 3, seed: int = 0, available: torch.Tensor | None = None) -> Glance:
    generator = torch.Generator().manual_seed(seed)
    return Glance(
        health=torch.rand(num_samples, len(CHANNELS), len(HEALTH_FIELDS), generator=generator),
        thumbnails=torch.rand(num_samples, NUM_CAMERAS, 3, *THUMBNAIL_SIZE_PX, generator=generator),
        ego_speed_mps=torch.rand(num_samples, generator=generator) * 10,
        channel_present=torch.ones(num_samples, len(CHANNELS), dtype=torch.bool),
        available=torch.ones(num_samples, len(UNITS), dtype=torch.bool) if available is None else available,
    )
