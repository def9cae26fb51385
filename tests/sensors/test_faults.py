"""What every fault of the catalogue promises: purity, determinism, monotone harm, identity at the clean level."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensors.faults.catalogue import CATALOGUE, families, fault_named
from sensors.faults.protocol import Draws, Fault, SensorFault, applied_name, check_level, scope_of, with_measurements
from sensors.faults.weather import Weather
from sensors.frame import NoHistory
from sensors.rig import CHANNELS
from tests.sensors.fault_measures import arrays_of, digest, drifting_scene, harm, history_of

SIZES = dict(height=90, width=160, num_points=640, num_sweeps=1)
FEW_CHANNELS = {"CAM_FRONT", "CAM_BACK_LEFT", "LIDAR_TOP", "RADAR_FRONT", "RADAR_BACK_LEFT"}
EVERY = pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)


@pytest.fixture(scope="module")
def scene():
    frames = drifting_scene(8, **SIZES)
    for frame in frames:
        for array in arrays_of(frame):
            array.flags.writeable = False
    return frames


@pytest.fixture(scope="module")
def digests(scene):
    return [digest(frame) for frame in scene]


def applied(fault, frame, history, level, token="token-7", epoch=None):
    # Another token stands for a sample of another scene.
    frame = frame if token == "token-7" else replace(frame, scene=token)
    return fault(frame, history, level, Draws(5, token, fault.name, epoch))


@EVERY
def test_is_a_fault_with_five_levels_away_from_clean(fault):
    assert isinstance(fault, Fault)
    steps = np.diff([fault.clean, *fault.levels])
    assert len(fault.levels) == 5
    assert (steps > 0).all() or (steps < 0).all()
    check_level(fault, fault.worst)


@EVERY
def test_leaves_its_input_as_it_was(fault, scene, digests):
    for level in {fault.levels[0], fault.levels[-1], fault.worst}:
        applied(fault, scene[-1], history_of(scene), level)
    # Nothing in the scene can be written to: a fault that tries raises.
    assert digest(scene[-1]) == digests[-1]


@EVERY
def test_clean_level_is_the_frame_itself(fault, scene):
    assert applied(fault, scene[-1], history_of(scene), fault.clean) is scene[-1]


@EVERY
def test_harm_grows_from_level_to_level(fault, scene):
    # Faults that act or not by chance need more samples; they are cheap.
    by_chance = (fault.worst == 1 and "LiDARs" in fault.unit) or fault.family in ("stuck", "late")
    by_chance = by_chance or fault.unit == "share of frames"
    tokens = [f"token {i}" for i in range((30 if fault.modality == "lidar" else 12) if by_chance else 4)]
    scope = scope_of(fault)
    # Where channels do not depend on one another, a few are as good as all.
    kept = {*scope} & FEW_CHANNELS if isinstance(fault, SensorFault | Weather) else {*scope}
    frame = with_measurements(scene[-1], {channel: None for channel in CHANNELS if channel not in kept})
    if fault.name in ("camera_fog", "camera_rain", "camera_snow"):
        frame = replace(frame, lidar=scene[-1].lidar)
    history = history_of(scene)
    harms = [
        np.mean([harm(frame, applied(fault, frame, history, level, token)) for token in tokens])
        for level in fault.levels
    ]
    # The clean level is the frame itself, without any harm.
    assert (np.diff([0.0, *harms]) > 0).all(), harms


@EVERY
def test_same_draws_same_bytes_and_others_differ(fault, scene):
    # Between two whole levels, so that whole-sensor faults leave something to chance.
    level = (fault.levels[0] + fault.levels[1]) / 2
    tokens = [f"t{i}" for i in range(30 if fault.family == "late" else 6)]
    frame, history = scene[-1], history_of(scene)
    if isinstance(fault, SensorFault | Weather) and fault.unit != "share of frames":
        frame = with_measurements(frame, {channel: None for channel in {*CHANNELS} - FEW_CHANNELS})
    first = [digest(applied(fault, frame, history, level, token)) for token in tokens]
    again = [digest(applied(fault, frame, history, level, token)) for token in reversed(tokens)]
    assert first == again[::-1]
    if fault.name not in NO_CHANCE:
        assert len(set(first)) > 1


NO_CHANCE = {
    *("camera_overexposed", "camera_contrast_loss", "camera_jpeg", "camera_pixelate", "camera_defocus"),
    *("camera_brightness", "camera_color_loss", "camera_color_quantisation"),
    *("lidar_limited_view", "lidar_beams_kept", "lidar_wet_ground", "radar_rcs_loss"),
}


@EVERY
def test_keeps_types_ranges_and_other_sensors(fault, scene):
    frame = scene[-1]
    harmed = applied(fault, frame, history_of(scene), fault.levels[-1])
    for channel in set(CHANNELS) - set(scope_of(fault)):
        for part in ("cameras", "radars"):
            assert getattr(harmed, part).get(channel) is getattr(frame, part).get(channel)
    for image in harmed.cameras.values():
        assert image.pixels.dtype == np.uint8
        assert image.pixels.shape == (90, 160, 3)
    sweeps = [*harmed.lidar, *(sweep for sweeps in harmed.radars.values() for sweep in sweeps)]
    for sweep in sweeps:
        assert all(np.isfinite(array).all() for array in arrays_of(sweep))
        original = frame.lidar[0] if hasattr(sweep, "ring") else frame.radars["RADAR_FRONT"][0]
        assert [array.dtype for array in arrays_of(sweep)] == [array.dtype for array in arrays_of(original)]
    assert harmed.token == frame.token
    assert harmed.boxes is frame.boxes


@EVERY
def test_survives_empty_and_single_points_and_tiny_pictures(fault, scene):
    frame = scene[-1]
    for count in (0, 1):
        few = replace(
            frame,
            cameras={name: replace(im, pixels=im.pixels[:7, :9].copy()) for name, im in frame.cameras.items()},
            lidar=tuple(sweep.select(np.arange(count)) for sweep in frame.lidar),
            radars={n: tuple(sweep.select(np.arange(count)) for sweep in s) for n, s in frame.radars.items()},
        )
        harmed = applied(fault, few, NoHistory(), fault.levels[-1])
        assert all(np.isfinite(array).all() for array in arrays_of(harmed))


@EVERY
def test_can_be_limited_to_one_channel(fault, scene):
    channel = scope_of(fault)[0]
    limited = fault_named(fault.name, [channel])
    harmed = applied(limited, scene[-1], history_of(scene), min(limited.levels[-1], max(limited.worst, limited.clean)))
    for other in set(CHANNELS) - {channel}:
        for part in ("cameras", "radars"):
            assert getattr(harmed, part).get(other) is getattr(scene[-1], part).get(other)
    assert applied_name(limited, 1.0) == f"{fault.name}[{channel}]@1.00"


@EVERY
def test_absent_sensor_is_an_error_and_never_a_clean_score(fault, scene):
    lost = replace(scene[-1], cameras={}, lidar=(), radars={})
    if fault.family == "lost":
        assert digest(applied(fault, lost, NoHistory(), fault.levels[-1])) == digest(lost)
        return
    with pytest.raises(ValueError, match=f"{fault.name}, got none"):
        applied(fault, lost, NoHistory(), fault.levels[-1])


def test_same_bytes_in_another_process(scene):
    names = ["lidar_point_drop", "camera_noise", "radar_ghosts", "camera_drop", "lidar_misalignment", "fog"]
    code = (
        "import json\n"
        "from sensors.faults.catalogue import fault_named\n"
        "from sensors.faults.protocol import Draws\n"
        "from sensors.frame import NoHistory\n"
        "from tests.sensors.fault_measures import digest, drifting_scene\n"
        f"frame = drifting_scene(8, **{SIZES})[-1]\n"
        f"faults = [fault_named(name) for name in {names[::-1]}]\n"
        "print(json.dumps({f.name: digest(f(frame, NoHistory(), f.levels[2], Draws(5, 'token-7', f.name, 3)))"
        " for f in faults}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    here = {
        name: digest(applied(fault_named(name), scene[-1], NoHistory(), fault_named(name).levels[2], epoch=3))
        for name in names
    }
    assert json.loads(printed.stdout) == here


def test_draws_are_pinned_and_depend_on_all_their_parts():
    first = Draws(0, "token", "lidar_point_drop").generator("LIDAR_TOP").integers(1 << 32, size=2).tolist()
    assert first == PINNED
    draws = Draws(0, "token", "fault", 1)
    others = [
        draws.generator("LIDAR_TOP"),
        draws.generator("CAM_BACK"),
        draws.generator("LIDAR_TOP", 0),
        draws.generator("LIDAR_TOP", 1),
        replace(draws, seed=1).generator("LIDAR_TOP"),
        replace(draws, token="other").generator("LIDAR_TOP"),
        replace(draws, fault="other").generator("LIDAR_TOP"),
        replace(draws, epoch=2).generator("LIDAR_TOP"),
        replace(draws, epoch=None).generator("LIDAR_TOP"),
    ]
    assert len({generator.integers(1 << 62) for generator in others}) == len(others)


PINNED = [174493176, 1837504697]


def test_unknown_names_channels_and_levels_are_one_line_errors():
    with pytest.raises(ValueError, match=r"expected a fault of the families .*got 'fogg' \(did you mean fog"):
        fault_named("fogg")
    with pytest.raises(ValueError, match="did you mean lidar_beam_drop or") as short:
        fault_named("lidar_beams_drop")
    assert "\n" not in str(short.value)
    assert len(str(short.value)) < 400
    assert all(family in str(short.value) for family in families())
    with pytest.raises(ValueError, match="got the family 'coding'; write one of camera_jpeg, camera_pixelate"):
        fault_named("coding")
    with pytest.raises(ValueError, match="expected channels of lidar_fog among LIDAR_TOP"):
        fault_named("lidar_fog", ["CAM_FRONT"])
    with pytest.raises(ValueError, match=r"between 0 and 1 \(share of points\), got 1.2"):
        check_level(fault_named("lidar_point_drop"), 1.2)
    with pytest.raises(ValueError, match="expected five levels"):
        SensorFault("x", "noise", "lidar", "m", (1.0, 3.0, 2.0, 4.0, 5.0), effect=lambda s, *_: s)


def test_names_are_unique_and_families_cover_all():
    names = [fault.name for fault in CATALOGUE]
    assert len(set(names)) == len(names)
    assert sorted(name for group in families().values() for name in group) == sorted(names)
    assert applied_name(fault_named("lidar_beam_drop"), 0.4) == "lidar_beam_drop@0.40"
    assert applied_name(fault_named("fog"), 0.005) == "fog@0.005"


def test_every_fault_harms_a_real_keyframe(nuscenes_real):
    from datamodules.nuscenes import NuScenesFrames

    # The real keyframe comes without radar: those are lent by the toy frame.
    read = NuScenesFrames(nuscenes_real / "frame", "v1.0-mini", "mini_train", missing="absent")[0]
    image = read.cameras["CAM_FRONT"]
    half = cv2.resize(image.pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    front = {
        "CAM_FRONT": replace(image, pixels=half, image_from_camera=np.diag([0.5, 0.5, 1]) @ image.image_from_camera)
    }
    radars = drifting_scene(1, **SIZES)[0].radars
    lidar = tuple(sweep.select(np.arange(0, len(sweep), 5)) for sweep in read.lidar)
    frame = replace(read, cameras=front, lidar=lidar, radars=radars, ego_speed_mps=8.0, ego_yaw_rate_radps=0.1)
    for fault in CATALOGUE:
        if fault.family in ("stuck", "late"):
            continue
        # Whole-sensor faults of one camera by their worst level: all of them.
        level = fault.worst if fault.family in ("lost", "blackout") else fault.levels[2]
        harmed = applied(fault, frame, NoHistory(), level)
        assert harm(frame, harmed) > 0, fault.name
