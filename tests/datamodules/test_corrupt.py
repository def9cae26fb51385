"""Corrupted copies: what the devkit and our reader find in them is the fault applied in memory."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.corrupt.request import CopyRequest
from datamodules.corrupt.sample import SampleCopier, encode_picture
from datamodules.corrupt.writer import write_copy
from datamodules.nuscenes import NuScenesFrames
from sensors.camera import decode_pixels, encode_jpeg
from sensors.faults.suites import suite_named
from sensors.frame import Frame
from sensors.lidar import read_lidar
from sensors.radar import read_radar
from sensors.rig import CAMERAS, LIDAR, RADARS
from sensors.transforms import RigidTransform

VERSION = "v1.0-small"
SWEEPS = 3  # the small set has two sweeps between keyframes
RADAR_ARRAYS = ("xyz_m", "velocity_raw_mps", "velocity_mps", "rcs_dbsm", "track_id", "dyn_prop", "invalid_state")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, but for the index that a reader may have put there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".dynfusion-index" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def request(root: Path, split: str | None = "small_val", **settings) -> CopyRequest:
    """Of the second scene, three samples, unless told otherwise."""
    return CopyRequest(root, VERSION, split, **settings)


def reread(root: Path, **settings) -> NuScenesFrames:
    return NuScenesFrames(root, VERSION, "small_val", lidar_sweeps=SWEEPS, radar_sweeps=SWEEPS, **settings)


def in_memory(asked: CopyRequest) -> list[Frame]:
    """What an evaluation makes of every sample: read with as many sweeps as lie since the keyframe before."""
    first, others = (
        NuScenesFrames(asked.root, VERSION, asked.split, num, num, close_m=asked.close_m) for num in (1, SWEEPS)
    )
    own = [first if token.endswith("-0") else others for token in first.tokens]
    return [asked.corruptor().apply(frames[i], frames.history(i))[0] for i, frames in enumerate(own)]


def assert_same_points(found: Frame, expected: Frame) -> None:
    """Point for point, for as many sweeps as belong to the keyframe."""
    assert found.token == expected.token
    assert bool(found.lidar) == bool(expected.lidar)
    for ours, theirs in zip(found.lidar, expected.lidar, strict=False):
        for name in ("xyz_m", "intensity", "ring"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert set(found.radars) == set(expected.radars)
    for channel in found.radars:
        for ours, theirs in zip(found.radars[channel], expected.radars[channel], strict=False):
            for name in RADAR_ARRAYS:
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (channel, name)


POINT_FAULTS = [
    ("lidar_point_drop", 0.5, {}),
    ("radar_clutter", 20.0, {"channels": ("RADAR_FRONT",)}),
    ("lidar_blackout", 1.0, {}),
    ("lidar_freeze", 1.0, {}),
]


@pytest.mark.parametrize(("fault", "level", "settings"), POINT_FAULTS, ids=[row[0] for row in POINT_FAULTS])
def test_points_read_again_are_the_points_of_the_fault_in_memory(fault, level, settings, small_set, tmp_path):
    asked = request(small_set, fault=fault, level=level, close_m=0.0, **settings)
    write_copy(asked, tmp_path / "copy")
    found = reread(tmp_path / "copy", close_m=0.0)
    for i, expected in enumerate(in_memory(asked)):
        assert_same_points(found[i], expected)
        assert all(np.array_equal(found[i].cameras[c].pixels, expected.cameras[c].pixels) for c in CAMERAS)


def test_the_default_reader_finds_what_an_evaluation_of_keyframes_sees(small_set, tmp_path):
    asked = request(small_set, scenario="quick/lidar-beams-lost")
    write_copy(asked, tmp_path / "copy")
    clean, found = (NuScenesFrames(root, VERSION, "small_val") for root in (small_set, tmp_path / "copy"))
    num_fewer = 0
    for i in range(len(clean)):
        expected, _ = asked.corruptor().apply(clean[i], clean.history(i))
        assert_same_points(found[i], expected)
        num_fewer += len(clean[i].lidar[0]) - len(found[i].lidar[0])
    assert num_fewer > 0


def test_a_harmed_picture_is_that_picture_in_jpeg_and_the_others_are_links(small_set, tmp_path):
    asked = request(small_set, fault="camera_dark", level=4.0, channels=("CAM_BACK",), jpeg_quality=97)
    manifest = write_copy(asked, tmp_path / "copy")
    found, expected = reread(tmp_path / "copy"), in_memory(asked)
    for i, frame in enumerate(expected):
        encoded = encode_picture(frame.cameras["CAM_BACK"].pixels, 97)
        assert np.array_equal(found[i].cameras["CAM_BACK"].pixels, decode_pixels(encoded, "own"))
        loss = found[i].cameras["CAM_BACK"].pixels.astype(float) - frame.cameras["CAM_BACK"].pixels
        assert np.abs(loss).mean() < 3
    tables = json.loads((tmp_path / "copy" / VERSION / "sample_data.json").read_text())
    for row in tables:
        ours, theirs = tmp_path / "copy" / row["filename"], small_set / row["filename"]
        assert ours.samefile(theirs) == ("CAM_BACK/" not in row["filename"])
    assert manifest["files"]["written"] == len(expected)
    assert manifest["files"]["unchanged"] == len(tables) - len(expected)


@pytest.mark.parametrize(("fault", "channel"), [("lidar_misalignment", LIDAR), ("camera_misalignment", "CAM_FRONT")])
def test_a_wrong_calibration_is_in_the_tables_of_the_copy(fault, channel, small_set, tmp_path):
    asked = request(small_set, fault=fault, level=3.0)
    write_copy(asked, tmp_path / "copy")
    found, clean = reread(tmp_path / "copy"), reread(small_set)
    for i, expected in enumerate(in_memory(asked)):
        poses = []
        for frame in (found[i], expected, clean[i]):
            parts = [frame.cameras[channel]] if channel in CAMERAS else frame.lidar[: len(expected.lidar)]
            poses.append([_pose(part) for part in parts])
        for ours, theirs, before in zip(*poses, strict=True):
            assert np.allclose(ours.matrix, theirs.matrix, atol=1e-7)
            assert not np.allclose(ours.matrix, before.matrix, atol=1e-3)
        assert np.allclose(found[i].global_from_ego.matrix, clean[i].global_from_ego.matrix)


def _pose(part) -> RigidTransform:
    return getattr(part, "ego_from_camera", None) or getattr(part, "ego_from_lidar", None) or part.ego_from_radar


@pytest.mark.parametrize("lost", ["missing", "empty"])
def test_lost_sensors_are_absent_or_empty_as_asked(lost, small_set, tmp_path):
    asked = request(small_set, scenario="missing-sensors/radar", lost=lost)
    manifest = write_copy(asked, tmp_path / "copy")
    found = reread(tmp_path / "copy", missing="absent") if lost == "empty" else None
    if lost == "missing":
        with pytest.warns(UserWarning, match="count as absent"):
            found = reread(tmp_path / "copy", missing="absent")
        with pytest.raises(FileNotFoundError, match="missing=absent"):
            reread(tmp_path / "copy")[0]
        assert manifest["lost_keyframes_by_channel"] == dict.fromkeys(sorted((*CAMERAS, LIDAR)), len(found))
    clean = reread(small_set)
    for i in range(len(clean)):
        frame = found[i]
        assert np.array_equal(frame.global_from_ego.matrix, clean[i].global_from_ego.matrix)
        assert set(frame.radars) == set(RADARS)
        if lost == "missing":
            assert not frame.cameras
            assert frame.lidar == ()
        else:
            assert all(not frame.cameras[channel].pixels.any() for channel in CAMERAS)
            assert [len(sweep) for sweep in frame.lidar] == [0] * len(clean[i].lidar)


def test_the_devkit_loads_a_copy_of_a_split_and_reads_its_points(tiny_town, tmp_path):
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud

    asked = CopyRequest(tiny_town, "v1.0-town", "town_val", scenario="quick/fog")
    manifest = write_copy(asked, tmp_path / "copy")
    theirs = NuScenes("v1.0-town", str(tmp_path / "copy"), verbose=False)
    whole = NuScenes("v1.0-town", str(tiny_town), verbose=False)
    assert len(theirs.scene) == 1 < len(whole.scene)
    assert len(theirs.sample) == manifest["samples"] == 3
    scene_tokens = {scene["token"] for scene in theirs.scene}
    kept = {sample["token"] for sample in whole.sample if sample["scene_token"] in scene_tokens}
    assert {sample["token"] for sample in theirs.sample} == kept
    assert len(theirs.sample_annotation) == sum(row["sample_token"] in kept for row in whole.sample_annotation)
    for row in theirs.sample_data:
        path = tmp_path / "copy" / row["filename"]
        assert path.is_file()
        channel = row["channel"]
        if channel == LIDAR:
            ours = read_lidar(path, 0.0, RigidTransform.identity())
            points = LidarPointCloud.from_file(str(path)).points.T
            assert np.array_equal(points, np.c_[ours.xyz_m, ours.intensity])
        elif channel in RADARS:
            ours = read_radar(path, 0.0, RigidTransform.identity())
            RadarPointCloud.disable_filters()
            try:
                points = RadarPointCloud.from_file(str(path)).points.T
            finally:
                RadarPointCloud.default_filters()
            assert np.allclose(points[:, :3], ours.xyz_m)
    for sample in theirs.sample:
        path, boxes, _ = theirs.get_sample_data(sample["data"]["LIDAR_TOP"])
        assert len(boxes) == len(sample["anns"])
        assert Path(path).read_bytes() != Path(whole.get_sample_data_path(sample["data"]["LIDAR_TOP"])).read_bytes()


def test_the_devkit_reads_empty_clouds(small_set, tmp_path):
    from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud

    write_copy(request(small_set, scenario="missing-sensors/camera", lost="empty"), tmp_path / "copy")
    for path in (tmp_path / "copy" / "samples" / LIDAR).iterdir():
        assert not np.isfinite(LidarPointCloud.from_file(str(path)).points).any()
        assert len(read_lidar(path, 0.0, RigidTransform.identity())) == 0
    for path in (tmp_path / "copy" / "samples" / "RADAR_FRONT").iterdir():
        assert RadarPointCloud.from_file(str(path)).points.shape == (18, 0)


def test_pictures_between_keyframes_leave_the_tables_of_harmed_cameras(own_small_set, tmp_path):
    """A picture is put between the first two of CAM_FRONT, and one of CAM_BACK, which is not harmed."""
    table = own_small_set / VERSION / "sample_data.json"
    rows = json.loads(table.read_text())
    for channel in ("CAM_FRONT", "CAM_BACK"):
        first = next(row for row in rows if f"/{channel}/" in row["filename"] and not row["prev"])
        second = next(row for row in rows if row["token"] == first["next"])
        between = {**second, "token": f"between-{channel}", "is_key_frame": False, "prev": first["token"]}
        between |= {"filename": f"sweeps/{channel}/between.jpg", "next": second["token"]}
        first["next"] = second["prev"] = between["token"]
        (own_small_set / between["filename"]).parent.mkdir(parents=True, exist_ok=True)
        (own_small_set / between["filename"]).write_bytes((own_small_set / second["filename"]).read_bytes())
        rows.append(between)
    table.write_text(json.dumps(rows))
    settings = dict(fault="camera_dark", level=3.0, channels=("CAM_FRONT",))
    for form, kept in (("remove", {"between-CAM_BACK"}), ("keep", {"between-CAM_BACK", "between-CAM_FRONT"})):
        manifest = write_copy(request(own_small_set, None, **settings, camera_sweeps=form), tmp_path / form)
        copied = {row["token"]: row for row in json.loads((tmp_path / form / VERSION / "sample_data.json").read_text())}
        assert {token for token in copied if token.startswith("between")} == kept
        assert manifest["files"]["taken_out_of_sample_data"] == 2 - len(kept)
        for row in copied.values():
            assert not row["prev"] or copied[row["prev"]]["next"] == row["token"]
            assert not row["next"] or copied[row["next"]]["prev"] == row["token"]
            assert (tmp_path / form / row["filename"]).is_file()


def test_coloured_noise_survives_the_jpeg():
    """As a colour camera's noise: independent in every pixel and colour; colour at half resolution smooths it away."""
    noise = np.random.default_rng(0).normal(128, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)

    def loss(encoded: bytes) -> float:
        return float(np.sqrt(np.square(decode_pixels(encoded, "own").astype(float) - noise).mean()))

    assert loss(encode_picture(noise, 95)) < 0.4 * loss(encode_jpeg(noise, 95))
    assert loss(encode_picture(noise, 100)) < 1.5


def test_every_file_of_a_keyframe_belongs_to_exactly_one(small_set, tmp_path):
    copier = SampleCopier(request(small_set, None, scenario="quick/clean"), tmp_path)
    rows = [row for i in range(len(copier.frames)) for chain in copier.chains(i).values() for row in chain]
    assert sorted(rows) == list(range(len(copier.frames.index.measurements.filename)))


def test_the_clean_scenario_links_everything(small_set, tmp_path):
    write_copy(request(small_set, None, scenario="quick/clean"), tmp_path / "copy")
    for name in contents(tmp_path / "copy"):
        if name not in ("manifest.json", "faults.json"):
            assert (tmp_path / "copy" / name).samefile(small_set / name)


def test_the_manifest_says_what_was_done(small_set, tmp_path):
    asked = request(small_set, scenario="quick/front-dead", seed=7)
    write_copy(asked, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    scenario = next(scenario for scenario in suite_named("quick") if scenario.name == "front-dead")
    assert [(step["fault"], step["level"]) for step in manifest["request"]["steps"]] == [
        (fault.name, level) for fault, level in scenario.steps
    ]
    assert manifest["request"]["seed"] == 7
    assert manifest["request"]["root"] == str(small_set.resolve())
    assert "nuscenes.org/terms-of-use" in manifest["notice"]
    assert "CC BY-NC-SA 4.0" in manifest["notice"]
    faults = json.loads((tmp_path / "copy" / "faults.json").read_text())
    assert list(faults) == list(NuScenesFrames(small_set, VERSION, "small_val").tokens)
    assert all(entry["lost"] == ["CAM_FRONT", "RADAR_FRONT"] for entry in faults.values())
