"""What a frame must have in common with the devkit, whichever data set: used on real nuScenes and on the town."""

import numpy as np
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, transform_matrix
from pyquaternion import Quaternion

from datamodules.labels import boxes_of
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_FROM_CATEGORY, DETECTION_NAMES
from sensors.lidar import gathered_points
from sensors.radar import PCD_FIELDS
from sensors.rig import CAMERAS, CHANNELS, LIDAR


def matrix_of(record, inverse=False):
    return transform_matrix(record["translation"], Quaternion(record["rotation"]), inverse)


def chain_of(nusc, sample, token):
    """Keyframe ego frame from the sensor at its own time, by the devkit's own matrices."""
    row, lidar = nusc.get("sample_data", token), nusc.get("sample_data", sample["data"][LIDAR])
    steps = (
        matrix_of(nusc.get("ego_pose", lidar["ego_pose_token"]), inverse=True),
        matrix_of(nusc.get("ego_pose", row["ego_pose_token"])),
        matrix_of(nusc.get("calibrated_sensor", row["calibrated_sensor_token"])),
    )
    return steps[0] @ steps[1] @ steps[2]


def check_chains_and_times(nusc, frames, i):
    """Every channel and all its sweeps back to the scene's start: transform, lag, and that no sweep is left out."""
    row, sample = int(frames.rows[i]), nusc.get("sample", frames.tokens[i])
    reference = frames.chains.reference(row)
    assert reference.timestamp_us == sample["timestamp"]
    checked = 0
    for channel in (channel for channel in CHANNELS if channel in sample["data"]):
        token = sample["data"][channel]
        for step in frames.chains.sweeps(frames.chains.keyframe(row, channel), 10):
            record = nusc.get("sample_data", token)
            assert frames.index.measurements.filename[step].decode() == record["filename"]
            transform = frames.chains.ego_from_sensor(step, reference).matrix
            np.testing.assert_allclose(transform, chain_of(nusc, sample, token), atol=1e-8)
            assert abs(frames.chains.lag_s(step, reference) - 1e-6 * (sample["timestamp"] - record["timestamp"])) < 1e-9
            checked, token = checked + 1, record["prev"]
        assert not token or checked >= 10
    return checked


def check_intrinsics(nusc, frames, i):
    """Stored to the last bit; zeros for what is no camera."""
    sample, columns = nusc.get("sample", frames.tokens[i]), frames.index.measurements
    for channel, token in sample["data"].items():
        measurement = frames.chains.keyframe(int(frames.rows[i]), channel)
        record = nusc.get("calibrated_sensor", nusc.get("sample_data", token)["calibrated_sensor_token"])
        expected = record["camera_intrinsic"] if channel in CAMERAS else np.zeros((3, 3))
        np.testing.assert_array_equal(frames.index.calibrations.intrinsics[columns.calibration[measurement]], expected)


def check_boxes_in_every_sensor(nusc, frames, i):
    """``get_sample_data`` moves boxes into each sensor's frame by way of that sensor's own ego pose: so do we."""
    row, sample = int(frames.rows[i]), nusc.get("sample", frames.tokens[i])
    reference = frames.chains.reference(row)
    own = boxes_of(frames.index, row, reference.ego_from_global)
    for channel, token in sample["data"].items():
        _, boxes, _ = nusc.get_sample_data(token, box_vis_level=BoxVisibility.NONE)
        expected = [box for box in boxes if box.name in DETECTION_FROM_CATEGORY]
        assert len(own) == len(expected)
        sensor_from_ego = frames.chains.ego_from_sensor(frames.chains.keyframe(row, channel), reference).inverse()
        if not expected:
            continue
        # Our labels are float32 in the ego frame; the devkit interpolates nothing at keyframes.
        centers = sensor_from_ego.points(own.center_m.astype(np.float64))
        np.testing.assert_allclose(centers, [box.center for box in expected], atol=2e-4)
        np.testing.assert_allclose(own.size_lwh_m[:, [1, 0, 2]], [box.wlh for box in expected], rtol=1e-6)


def check_labels(nusc, frames, i):
    """Class, attribute, counts, heading and velocity (NaN where the devkit says NaN) in the ego frame."""
    row, sample = int(frames.rows[i]), nusc.get("sample", frames.tokens[i])
    own = boxes_of(frames.index, row, frames.chains.reference(row).ego_from_global)
    lidar = nusc.get("sample_data", sample["data"][LIDAR])
    turn = Quaternion(nusc.get("ego_pose", lidar["ego_pose_token"])["rotation"]).inverse
    tokens = [t for t in sample["anns"] if nusc.get("sample_annotation", t)["category_name"] in DETECTION_FROM_CATEGORY]
    assert len(own) == len(tokens)
    unknown = 0
    for k, token in enumerate(tokens):
        record = nusc.get("sample_annotation", token)
        assert DETECTION_NAMES[own.label[k]] == DETECTION_FROM_CATEGORY[record["category_name"]]
        assert own.num_points[k] == record["num_lidar_pts"] + record["num_radar_pts"]
        names = [nusc.get("attribute", attribute)["name"] for attribute in record["attribute_tokens"]]
        assert names == [ATTRIBUTE_NAMES[a] for a in own.attribute[k : k + 1] if a >= 0]
        yaw = quaternion_yaw(turn * Quaternion(record["rotation"]))
        assert abs(np.angle(np.exp(1j * (own.yaw_rad[k] - yaw)))) < 1e-6
        velocity = turn.rotation_matrix @ (nusc.box_velocity(token) * [1, 1, 0])
        np.testing.assert_allclose(own.velocity_mps[k], velocity[:2], atol=1e-5)
        unknown += int(np.isnan(velocity[0]))
    return unknown


def check_lidar_sweeps(nusc, frames, i, num_sweeps, atol_m=1e-4):
    """``from_file_multisweep`` in the keyframe's LiDAR frame: the same points in the same order, the same ages."""
    frame, sample = frames[i], nusc.get("sample", frames.tokens[i])
    cloud, lags = LidarPointCloud.from_file_multisweep(nusc, sample, LIDAR, LIDAR, num_sweeps, min_distance=0.0)
    lidar_from_ego = frame.lidar[0].ego_from_lidar.inverse().matrix
    points = gathered_points(frame.lidar, lidar_from_ego)
    np.testing.assert_allclose(points[:, :3], cloud.points[:3].T, atol=atol_m)
    np.testing.assert_array_equal(points[:, 3], cloud.points[3])
    np.testing.assert_allclose(points[:, 4], lags[0], atol=1e-6)
    return len(frame.lidar)


def check_radar_sweeps(nusc, frames, i, channel, num_sweeps):
    """Unfiltered, in the frame of the radar's keyframe. The devkit leaves velocities in each sweep's own axes."""
    frame, sample = frames[i], nusc.get("sample", frames.tokens[i])
    cloud, lags = RadarPointCloud.from_file_multisweep(nusc, sample, channel, channel, num_sweeps, min_distance=0.0)
    sweeps = frame.radars[channel]
    radar_from_ego = sweeps[0].ego_from_radar.inverse()
    xyz = np.concatenate([(radar_from_ego @ sweep.ego_from_radar).points(sweep.xyz_m) for sweep in sweeps])
    np.testing.assert_allclose(xyz, cloud.points[:3].T, atol=1e-4)
    others = np.concatenate([radar_columns(sweep)[3:] for sweep in sweeps], axis=1)
    np.testing.assert_array_equal(others, cloud.points[3:])
    ages = np.concatenate([np.full(len(sweep), sweep.lag_s - sweeps[0].lag_s) for sweep in sweeps])
    np.testing.assert_allclose(ages, lags[0], atol=1e-6)
    return len(sweeps)


def radar_columns(sweep):
    """A sweep as the devkit's 18 rows."""
    vectors = {"x": sweep.xyz_m, "vx": sweep.velocity_raw_mps, "vx_comp": sweep.velocity_mps}
    columns = {"id": sweep.track_id, "rcs": sweep.rcs_dbsm, "y": sweep.xyz_m[:, 1], "z": sweep.xyz_m[:, 2]}
    columns |= {name: vector[:, 0] for name, vector in vectors.items()}
    columns |= {name.replace("x", "y"): vector[:, 1] for name, vector in vectors.items()}
    return np.stack([columns[name] if name in columns else getattr(sweep, name) for name, _ in PCD_FIELDS])
