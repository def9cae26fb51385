"""What faults in time need of the reader: the place in the scene, the turn rate, the measurements between keyframes."""

import numpy as np
import pytest

from datamodules.nuscenes import NuScenesFrames
from sensors.rig import LIDAR
from tests.datamodules.small_set import STEP_US, SWEEP_US, write_small_set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_small_set(tmp_path_factory.mktemp("time"))


def test_frames_know_their_place_in_the_scene_and_how_fast_they_turn(root):
    frames = [frame for frame in NuScenesFrames(root, "v1.0-small", "small_train")]
    assert [(frame.scene, frame.keyframe, frame.num_keyframes) for frame in frames] == [
        *(("scene-a", i, 4) for i in range(4)),
        *(("scene-b", i, 3) for i in range(3)),
    ]
    # The small set drives a curve of 0.2 rad/s with a little pitch and roll.
    assert [frame.ego_yaw_rate_radps for frame in frames] == pytest.approx([0.2] * 7, abs=1e-3)


def test_history_lists_every_sweep_of_the_scene_and_reads_them_into_todays_frame(root):
    frames = NuScenesFrames(root, "v1.0-small", "small_train", lidar_sweeps=3)
    history = frames.history(2)
    # Keyframes 0.5 s apart, two more sweeps 50 ms and 100 ms before each but the first.
    keyframes_s = np.array([0, STEP_US, 2 * STEP_US]) * 1e-6
    expected = sorted([*keyframes_s, *(k + n * SWEEP_US * 1e-6 for k in keyframes_s[:2] for n in (1, 2))])
    assert history.lags_s(LIDAR, 9.0) == pytest.approx(expected)
    assert history.lags_s(LIDAR, 0.06) == pytest.approx(expected[:3])
    assert history.lags_s("CAM_FRONT", 9.0) == pytest.approx(keyframes_s + 0.003)
    for step, sweep in enumerate(frames[2].lidar):
        again = history.measured(LIDAR, step)
        assert np.array_equal(again.xyz_m, sweep.xyz_m)
        assert again.lag_s == sweep.lag_s
    # Standing landmarks land on the same place of today's ego frame, however old the sweep.
    old = history.measured(LIDAR, len(expected) - 1)
    assert np.allclose(old.to_ego(), frames[2].lidar[0].to_ego(), atol=1e-3)
    assert history.measured(LIDAR, len(expected)) is None


def test_lost_files_are_passed_over_where_that_is_asked_for(root, tmp_path):
    own = write_small_set(tmp_path / "set")
    (own / "samples/CAM_FRONT/scene-a-CAM_FRONT-1-0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="expected the file"):
        NuScenesFrames(own, "v1.0-small", "small_train").history(2).measured("CAM_FRONT", 1)
    with pytest.warns(UserWarning, match="are missing"):
        frames = NuScenesFrames(own, "v1.0-small", "small_train", missing="absent")
    assert frames.history(2).lags_s("CAM_FRONT", 9.0) == pytest.approx([0.003, 1.003])
