"""nuScenes-R as MoME (Park et al., CVPR 2025) uses it, after Yu et al. (CVPRW 2023): clean and six failures."""

from sensors.faults import published_lidar as points
from sensors.faults import published_objects as objects
from sensors.faults.catalogue import fault_named
from sensors.faults.suites.published import LidarPart, Published, ladder
from sensors.faults.suites.scenario import Scenario

_FOUR_BEAMS = Published(
    "nuscenes_r_four_beams", "points", ladder(LidarPart, points.multicorrupt_beams_reducing, (4,), random=False)
)
_LIMITED_VIEW = Published(
    "nuscenes_r_limited_view", "view", ladder(LidarPart, points.adlab_limited_view, (60.0,), random=False)
)
# One draw per frame: all sweeps lose their objects together.
_OBJECT_FAILURE = Published(
    "nuscenes_r_object_failure",
    "objects",
    ladder(LidarPart, objects.adlab_object_failure, (0.5,), objects=True, per_sweep=False),
)
_DIRT = fault_named("camera_lens_dirt")

NUSCENES_R = (
    Scenario("clean"),
    Scenario("four-beams", ((_FOUR_BEAMS, 1),)),
    Scenario("lidar-drop", (("lidar_drop", 1),)),
    Scenario("limited-view-60", ((_LIMITED_VIEW, 1),)),
    Scenario("object-failure", ((_OBJECT_FAILURE, 1),)),
    Scenario("all-views-dropped", (("camera_drop", 6),)),
    # Published with 16 photographed masks; here procedural dirt of its third level.
    Scenario("occlusion", ((_DIRT, _DIRT.levels[2]),)),
)
