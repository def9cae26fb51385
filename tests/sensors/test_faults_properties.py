"""Random frames, levels, channels and orders: what must hold for every fault of the catalogue at once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.faults.catalogue import CATALOGUE
from sensors.faults.protocol import Draws, restricted, scope_of
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, CHANNELS, LIDAR
from tests.sensors.fault_measures import arrays_of, digest, drifting_scene, history_of
from tests.sensors.toy_frames import toy_frame

SIZES = dict(height=45, width=80, num_points=160, num_sweeps=2)
SCENE = drifting_scene(5, **SIZES)
for _frame in SCENE:
    for _array in arrays_of(_frame):
        _array.flags.writeable = False

faults = st.sampled_from(CATALOGUE)
shares = st.floats(0, 1, allow_nan=False)
tokens = st.text("abc0", min_size=1, max_size=4)


def level_of(fault, share):
    return fault.clean + share * (fault.worst - fault.clean)


def few_points(frame, lidar_points, radar_points):
    """Some channels' first points only."""
    return replace(
        frame,
        lidar=tuple(sweep.select(np.arange(min(lidar_points, len(sweep)))) for sweep in frame.lidar),
        radars={
            channel: tuple(sweep.select(np.arange(min(radar_points, len(sweep)))) for sweep in sweeps)
            for channel, sweeps in frame.radars.items()
        },
    )


def assert_sound(before, after):
    """Finite, of the same types and ranges, and still a frame."""
    for image in after.cameras.values():
        assert image.pixels.dtype == np.uint8
        assert np.isfinite(image.image_from_camera).all()
    for sweep in after.lidar:
        assert (sweep.xyz_m.dtype, sweep.intensity.dtype, sweep.ring.dtype) == (np.float32, np.float32, np.uint8)
        assert len(sweep.xyz_m) == len(sweep.intensity) == len(sweep.ring)
        assert sweep.ring.max(initial=0) < 32
        assert sweep.intensity.min(initial=0) >= 0
        assert sweep.intensity.max(initial=0) <= 255
    for sweeps in after.radars.values():
        for sweep in sweeps:
            assert len({len(array) for array in vars(sweep).values() if isinstance(array, np.ndarray)}) == 1
    assert all(np.isfinite(array).all() for array in arrays_of(replace(after, boxes=None)))
    assert (after.token, after.scene, after.timestamp_us) == (before.token, before.scene, before.timestamp_us)
    assert after.boxes is before.boxes


@settings(max_examples=100)
@given(faults, shares, tokens, st.integers(0, 160), st.integers(0, 60), st.booleans())
def test_any_fault_at_any_level_leaves_a_sound_frame(fault, share, token, lidar_points, radar_points, past):
    frame = few_points(SCENE[-1], lidar_points, radar_points)
    history = history_of([*SCENE[:-1], frame]) if past else NoHistory()
    before = digest(frame)
    level = level_of(fault, share)
    draws = Draws(3, token, fault.name)
    after = fault(frame, history, level, draws)
    assert digest(frame) == before
    assert_sound(frame, after)
    assert digest(fault(frame, history, level, draws)) == digest(after)
    for channel in set(CHANNELS) - set(scope_of(fault)):
        if channel in CAMERAS:
            assert after.cameras[channel] is frame.cameras[channel]
        elif channel != LIDAR:
            assert after.radars[channel] is frame.radars[channel]
    if share == 0:
        assert after is frame


@settings(max_examples=60)
@given(st.lists(st.tuples(faults, shares), min_size=2, max_size=4), tokens)
def test_faults_compose_in_any_order(steps, token):
    # Sensors that a fault took away are no error for the next one only in a scenario: keep to faults that leave all.
    steps = [(fault, share) for fault, share in steps if fault.family != "lost"]
    frame = SCENE[-1]
    for fault, share in steps:
        frame = fault(frame, history_of(SCENE), level_of(fault, share), Draws(3, token, fault.name))
        assert_sound(SCENE[-1], frame)


@settings(max_examples=50)
@given(faults, shares, st.data())
def test_a_restricted_fault_harms_its_channels_as_the_whole_one_does(fault, share, data):
    channels = data.draw(st.sets(st.sampled_from(scope_of(fault)), min_size=1))
    part = restricted(fault, sorted(channels))
    share *= min(1.0, abs((part.worst - part.clean) / (fault.worst - fault.clean)))
    after = part(SCENE[-1], history_of(SCENE), level_of(fault, share), Draws(3, "t", fault.name))
    for channel in set(CHANNELS) - channels:
        if channel in CAMERAS:
            assert after.cameras[channel] is SCENE[-1].cameras[channel]
        elif channel != LIDAR:
            assert after.radars[channel] is SCENE[-1].radars[channel]
        else:
            assert after.lidar is SCENE[-1].lidar


@settings(max_examples=25)
@given(faults, st.floats(0.05, 1))
def test_epochs_and_seeds_draw_anew(fault, share):
    frame = toy_frame(**SIZES)
    level = level_of(fault, share)
    results = {
        digest(fault(frame, history_of(SCENE), level, Draws(seed, "t", fault.name, epoch)))
        for seed, epoch in ((0, None), (0, None), (0, 1), (0, 1))
    }
    assert len(results) <= 2


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
@pytest.mark.parametrize("share", [5e-324, 1e-300, 1e-12])
def test_a_level_next_to_clean_leaves_a_sound_frame(fault, share):
    frame = few_points(SCENE[-1], 100, 40)
    assert_sound(
        frame, fault(frame, history_of([*SCENE[:-1], frame]), level_of(fault, share), Draws(3, "a", fault.name))
    )
