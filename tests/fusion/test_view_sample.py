"""Pictures of samples, films and maps: drawn places against the geometry functions and the devkit, files whole."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.nuscenes import NuScenesFrames
from fusion.cli import main
from fusion.report.colours import VIEW_ORDER
from fusion.view.map import MapMask, ego_path, map_file, mask_pixels, read_mask
from fusion.view.picture_files import write_gif
from fusion.view.sample import LARGE, find_sample, sample_picture
from fusion.view.sample_projection import depth_colours, points_in_view
from fusion.view.scene import FILM
from sensors.boxes import NO_ATTRIBUTE, Boxes
from sensors.camera import CameraImage, project
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.rig import NUSCENES_RIG
from sensors.transforms import RigidTransform

CHANNEL = "CAM_FRONT"
FOCAL = np.array([[380.0, 0, 239.5], [0, 380.0, 134.5], [0, 0, 1]])
EGO_FROM_CAMERA = NUSCENES_RIG[CHANNEL].ego_from_sensor
BLACK = np.zeros((270, 480, 3), np.uint8)


def bare_frame(pixels=BLACK, boxes=None, lidar=(), radars=None) -> Frame:
    """A frame of one front camera, and what is given."""
    image = CameraImage(pixels, FOCAL, EGO_FROM_CAMERA, 0.0)
    still = RigidTransform.identity()
    return Frame("token", "scene", 0, still, 0.0, {CHANNEL: image}, lidar, radars or {}, boxes)


def one_box(center_m, size_lwh_m, yaw_rad) -> Boxes:
    none = np.full((1, 2), np.nan)
    single = np.zeros(1, np.int64)
    return Boxes(
        np.array([center_m]), np.array([size_lwh_m]), np.array([yaw_rad]), none, single, np.ones(1),
        np.array([NO_ATTRIBUTE]), np.array([7]),
    )  # fmt: skip


def one_point(xyz_m) -> LidarSweep:
    return LidarSweep(np.array([xyz_m]), np.ones(1), np.zeros(1, np.uint8), 0.0, RigidTransform.identity())


def one_return(xyz_m, velocity_mps, invalid_state=0) -> RadarSweep:
    codes = {
        name: np.zeros(1, np.int8)
        for name in ("dyn_prop", "is_quality_valid", "pdh0", "x_rms", "y_rms", "vx_rms", "vy_rms")
    }
    codes |= {"ambig_state": np.full(1, 3, np.int8), "invalid_state": np.full(1, invalid_state, np.int8)}
    velocity = np.array([velocity_mps], float)
    return RadarSweep(
        np.array([xyz_m], float), velocity, velocity, np.zeros(1), np.zeros(1, np.int16), **codes, lag_s=0.0,
        ego_from_radar=RigidTransform.identity(),
    )  # fmt: skip


def tile_of(picture, place):
    left, top, width, height = LARGE.tile(place)
    return picture[top : top + height, left : left + width].astype(int)


def bev_of(picture):
    left, top, width, height = LARGE.bev
    return picture[top : top + height, left : left + width].astype(int)


def marked(pixels) -> np.ndarray:
    """A black picture with a white block around each of these pixels."""
    image = BLACK.copy()
    for column, row in np.rint(pixels).astype(int):
        image[row - 1 : row + 2, column - 1 : column + 2] = 255
    return image


@pytest.fixture(scope="module")
def empty() -> np.ndarray:
    """The picture of a black camera and nothing else."""
    return sample_picture(bare_frame())


def lit(before, after):
    """Row and column of every pixel that differs clearly."""
    return np.argwhere(np.abs(after - before).max(axis=-1) > 60)


def test_box_corners_are_drawn_where_the_camera_projects_them(empty):
    boxes = one_box((14.0, 1.0, 1.0), (4.5, 1.9, 1.6), 0.6)
    corners, depth_m = project(EGO_FROM_CAMERA.inverse().points(boxes.corners()[0]), FOCAL)
    assert (depth_m > 0).all()
    place = VIEW_ORDER.index(CHANNEL)
    before = tile_of(empty, place)
    drawn = lit(before, tile_of(sample_picture(bare_frame(boxes=boxes)), place))
    # Where those pixels of the image come to lie in the picture: seen by painting them.
    painted = tile_of(sample_picture(bare_frame(marked(corners))), place)
    count, _, _, centroids = cv2.connectedComponentsWithStats(
        (np.abs(painted - before).max(axis=-1) > 60).astype(np.uint8)
    )
    assert count == 9, "eight blocks and the background"
    blocks = centroids[1:, ::-1]
    assert all(np.linalg.norm(drawn - block, axis=1).min() < 1.5 for block in blocks)
    assert (drawn.min(axis=0) > blocks.min(axis=0) - 3).all()
    assert (drawn.max(axis=0) < blocks.max(axis=0) + 3).all()


def test_a_lidar_point_is_drawn_at_its_pixel_in_the_colour_of_its_depth(empty):
    point = np.array([[12.0, 1.5, 0.7]])
    pixel, _ = project(EGO_FROM_CAMERA.inverse().points(point), FOCAL)
    place = 6 + VIEW_ORDER.index(CHANNEL)
    before, with_point = tile_of(empty, place), tile_of(sample_picture(bare_frame(lidar=(one_point(point[0]),))), place)
    block = lit(before, tile_of(sample_picture(bare_frame(marked(pixel))), place)).mean(axis=0)
    dot = lit(before, with_point)
    assert len(dot)
    assert np.linalg.norm(dot - block, axis=1).max() < 2.5
    # Pixels at the dot's edge are mixed with black: compare directions of colour.
    wanted, seen = depth_colours(np.array([12.0 - 1.701]))[0, :3], with_point[tuple(dot[0])]
    assert np.dot(wanted, seen) / np.linalg.norm(wanted) / np.linalg.norm(seen) > 0.98


def test_points_in_view_keeps_those_ahead_and_inside_farthest_first():
    image = bare_frame().cameras[CHANNEL]
    xyz_camera = np.array([[0, 0, 5.0], [0, 0, 30.0], [0, 0, -5.0], [100, 0, 5.0], [0, 0, 0.5], [6.2, 0, 10.0]])
    pixel, depth_m = points_in_view(EGO_FROM_CAMERA.points(xyz_camera), image)
    assert np.allclose(depth_m, [30, 10, 5])
    assert np.allclose(pixel, [[239.5, 134.5], [239.5 + 38 * 6.2, 134.5], [239.5, 134.5]])


def test_near_is_red_and_far_is_blue():
    near, middle, far = depth_colours(np.array([3.0, 13.4, 50.0]))[:, :3]
    assert near.argmax() == 0
    assert middle.argmax() == 1
    assert far.argmax() == 2
    assert (depth_colours(np.array([0.1])) == depth_colours(np.array([3.0]))).all()


def test_a_radar_arrow_leads_half_a_second_along_the_velocity(empty):
    sweeps = {
        "RADAR_FRONT": (one_return((20, 5, 0), (20, 0)),),
        "RADAR_FRONT_LEFT": (one_return((-20, 5, 0), (0.4, 0)),),
        "RADAR_FRONT_RIGHT": (one_return((-20, -30, 0), (20, 0), invalid_state=4),),
    }
    drawn = bev_of(sample_picture(bare_frame(radars=sweeps)))
    height, width = drawn.shape[:2]
    px_per_m = height / (2 * 52.0)
    pixels = lit(bev_of(empty), drawn)
    above = pixels[pixels[:, 0] < height / 2]
    column, tail, tip = width / 2 - 5 * px_per_m, height / 2 - 20 * px_per_m, height / 2 - 30 * px_per_m
    assert abs(above[:, 0].min() - tip) < 3
    assert abs(above[:, 0].max() - tail) < 5
    assert np.abs(above[:, 1] - column).max() < 6
    # Slow ones and those that the default filter drops are points without an arrow.
    below = pixels[(pixels[:, 0] > height / 2) & (pixels[:, 0] < 0.9 * height)]
    places = height / 2 + 20 * px_per_m, np.array([column, width / 2 + 30 * px_per_m])
    assert np.abs(below[:, 0] - places[0]).max() < 6
    off = np.abs(below[:, 1, None] - places[1])
    assert off.min(axis=1).max() < 6
    assert set(off.argmin(axis=1)) == {0, 1}


def test_boxes_without_points_are_not_drawn(empty):
    unseen = replace(one_box((14.0, 1.0, 1.0), (4.5, 1.9, 1.6), 0.6), num_points=np.zeros(1, np.int64))
    assert (sample_picture(bare_frame(boxes=unseen)) == empty).all()


def test_a_frame_of_nothing_is_still_a_picture():
    frame = replace(bare_frame(), cameras={})
    assert sample_picture(frame).shape == (1120, 2280, 3)


def test_two_columns_hold_the_views_ahead_and_back():
    lefts = {channel: FILM.tile(place)[0] for place, channel in enumerate(VIEW_ORDER)}
    assert {lefts[channel] for channel in VIEW_ORDER[:3]} == {2}
    assert {lefts[channel] for channel in VIEW_ORDER[3:]} == {FILM.tile_px[0] + 2}
    assert len({FILM.tile(place)[:2] for place in range(6)}) == 6
    assert all(side % 2 == 0 for side in FILM.size_px), "MP4 needs even sides"


def test_the_mask_is_read_as_the_devkit_reads_it(tiny_town):
    from nuscenes.utils.map_mask import MapMask as DevkitMask

    frames = NuScenesFrames(tiny_town, "v1.0-town", None, 0, 0, cameras=False)
    file = map_file(frames, 0)
    path_m = ego_path(frames, np.arange(3))
    devkit = DevkitMask(str(file))
    columns, rows = devkit.to_pixel_coords(*path_m.T)
    assert np.array_equal(np.rint(mask_pixels(path_m, devkit.mask().shape[0])), np.stack([columns, rows], axis=1))
    mask: MapMask = read_mask(file, path_m)
    x_from, x_to, y_from, y_to = mask.extent_m
    assert np.isclose(x_to - x_from, 160)
    assert np.isclose(y_to - y_from, 160)
    assert mask.pixels.shape == (1600, 1600)
    rng = np.random.default_rng(0)
    xy_m = rng.uniform([x_from + 1, y_from + 1], [x_to - 1, y_to - 1], (400, 2)).round(1) + 0.05
    height, width = devkit.mask().shape
    inside = ((xy_m > 0) & (xy_m < np.array([width, height]) * 0.1 - 0.1)).all(axis=1)
    ours = mask.pixels[((y_to - xy_m[:, 1]) / 0.1).astype(int), ((xy_m[:, 0] - x_from) / 0.1).astype(int)] > 0
    whole = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    theirs = [whole[int(height - y / 0.1), int(x / 0.1)] > 0 for x, y in xy_m[inside]]
    assert np.array_equal(ours[inside], theirs)
    assert 0 < np.mean(theirs) < 1


def test_a_sample_is_found_by_token_and_by_place(tiny_town):
    frames = NuScenesFrames(tiny_town, "v1.0-town", "town_train", 0, 0, cameras=False)
    assert find_sample(frames, "", "", 4) == 4
    assert find_sample(frames, frames.tokens[5], "", 0) == 5
    assert find_sample(frames, "", "1", 2) == 5
    assert find_sample(frames, "", "town-train-0001", 0) == 3


def test_view_writes_a_sample_of_the_town(tiny_town, tmp_path):
    out = tmp_path / "new" / "sample.png"
    assert main(["view", f"root={tiny_town}", "split=town_val", "index=1", f"out={out}"]) == 0
    pixels = cv2.imread(str(out))
    assert pixels.shape == (1120, 2280, 3)
    assert all(pixels[top : top + h, left : left + w].std() > 5 for left, top, w, h in map(LARGE.tile, range(12)))
    assert [path.name for path in out.parent.iterdir()] == ["sample.png"]


def test_a_gif_has_the_frames_of_the_scene(tiny_town, tmp_path):
    from PIL import Image

    assert main(["view", f"root={tiny_town}", "scene=1", "fps=4", f"out={tmp_path / 'a.gif'}"]) == 0
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (3, FILM.size_px, 250)


def test_an_mp4_has_the_frames_of_the_scene(tiny_town, tmp_path):
    assert main(["view", f"root={tiny_town}", "scene=town-val-0000", f"out={tmp_path / 'a.mp4'}"]) == 0
    film = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    pictures = []
    while (read := film.read())[0]:
        pictures.append(read[1])
    assert len(pictures) == 3
    assert pictures[0].shape[1::-1] == FILM.size_px
    assert film.get(cv2.CAP_PROP_FPS) == 2


def test_the_map_shows_the_path(tiny_town, tmp_path):
    out = tmp_path / "map.png"
    assert main(["view", f"root={tiny_town}", "scene=0", "map=true", f"out={out}"]) == 0
    pixels = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB).astype(int)
    assert pixels.shape == (1000, 1000, 3)
    frames = NuScenesFrames(tiny_town, "v1.0-town", None, 0, 0, cameras=False)
    path_m = ego_path(frames, np.arange(3))
    middle_m = (path_m.min(axis=0) + path_m.max(axis=0)) / 2
    column, row = (500 + (path_m[0, 0] - middle_m[0]) * 6.25, 500 - (path_m[0, 1] - middle_m[1]) * 6.25)
    green = np.argwhere(np.abs(pixels - [0x5F, 0xE0, 0xC5]).max(axis=-1) < 12)
    assert np.linalg.norm(green - [row, column], axis=1).min() < 3


def test_a_film_that_breaks_off_leaves_nothing(tmp_path):
    def breaking():
        yield BLACK
        raise ValueError("a damaged picture")

    (tmp_path / "a.gif").write_bytes(b"the film before")
    with pytest.raises(ValueError, match="damaged"):
        write_gif(tmp_path / "a.gif", breaking(), 2.0)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the film before"]


def test_kept_colours_survive_in_a_gif(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    picture[3, 5] = (0xFF, 0x8A, 0x5C)
    write_gif(tmp_path / "a.gif", iter([picture]), 2.0, ("#ff8a5c",))
    assert Image.open(tmp_path / "a.gif").convert("RGB").getpixel((5, 3)) == (0xFF, 0x8A, 0x5C)


MISTAKES = {
    "no root": ([], "root=FOLDER"),
    "unknown root": (["root=/no/such/folder"], "/no/such/folder"),
    "unknown version": (["root={}", "version=v9"], "v9"),
    "unknown split": (["root={}", "split=lost"], "'lost'"),
    "unknown sample": (["root={}", "sample=1234"], "'1234'"),
    "index too high": (["root={}", "split=town_val", "index=3"], "from 0 to 2, got 3"),
    "index below": (["root={}", "index=-1"], "got -1"),
    "unknown scene": (["root={}", "scene=scene-9"], "'scene-9'"),
    "scene too high": (["root={}", "scene=9"], "from 0 to 2"),
    "sample and scene": (["root={}", "sample=a", "scene=0"], "either"),
    "other ending": (["root={}", "out={}/a.jpg"], ".png, .gif, .mp4"),
    "film of a map": (["root={}", "map=true", "out={}/a.gif"], "FILE.png"),
    "no frames a second": (["root={}", "scene=0", "fps=0", "out={}/a.gif"], "fps"),
    "unknown key": (["root={}", "smaple=0"], "smaple"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tiny_town, capsys):
    arguments, told = MISTAKES[name]
    assert main(["view", *(argument.replace("{}", str(tiny_town)) for argument in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_real_lidar_points_fall_on_the_devkits_pixels(nuscenes_real):
    from nuscenes.nuscenes import NuScenes
    from scipy.spatial import cKDTree

    frame = NuScenesFrames(nuscenes_real / "frame", "v1.0-mini", "mini_train", close_m=0.0)[0]
    devkit = NuScenes("v1.0-mini", str(nuscenes_real / "frame"), verbose=False)
    data = devkit.get("sample", frame.token)["data"]
    for channel in ("CAM_FRONT", "CAM_BACK_LEFT"):
        theirs, depths_m, _ = devkit.explorer.map_pointcloud_to_image(data["LIDAR_TOP"], data[channel])
        pixel, depth_m = points_in_view(frame.lidar[0].to_ego(), frame.cameras[channel])
        kept = ((pixel > 1) & (pixel < [1599, 899])).all(axis=1)  # the devkit leaves out the outermost pixels
        assert kept.sum() == theirs.shape[1] > 2000
        order = np.argsort(-depths_m, kind="stable")
        assert np.allclose(depth_m[kept], depths_m[order], atol=1e-3)
        # The devkit moves float32 points through global coordinates: some hundredths of a pixel.
        apart_px, _ = cKDTree(theirs[:2].T).query(pixel[kept])
        assert apart_px.max() < 0.2
