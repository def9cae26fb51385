"""Objects bent in pictures: corners by hand arithmetic, splines against SciPy's."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults import published_warp
from sensors.faults.protocol import Draws
from sensors.faults.published_warp import bent, seen_edges, spline
from sensors.faults.suites import SUITES
from sensors.frame import NoHistory
from sensors.rig import LIDAR, NUSCENES_RIG
from tests.sensors.labelled_frames import labelled_frame

HEIGHT, WIDTH = 450, 800
# Every pixel says where it is: column / 4 and row / 2, so that half a grey level is two columns or one row.
PLACES = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PLACES[..., 0], PLACES[..., 1] = np.arange(WIDTH) // 4, np.arange(HEIGHT)[:, None] // 2

FRAME = labelled_frame(height=HEIGHT, width=WIDTH, num_points=64, num_sweeps=1)
FRONT = replace(FRAME.cameras["CAM_FRONT"], pixels=PLACES)
CAR = FRAME.boxes.select(np.array([0]))
CAR_ALONE = replace(FRAME, cameras={"CAM_FRONT": FRONT}, radars={}, boxes=CAR)
LIDAR_FROM_EGO = NUSCENES_RIG[LIDAR].ego_from_sensor.inverse()


def corners_by_hand():
    """Of the car, in the LiDAR's frame: four upright edges around the box, upper and lower end."""
    center, (length, width, height), yaw = CAR.center_m[0], CAR.size_lwh_m[0], float(CAR.yaw_rad[0])
    along, across = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    edges = [
        [center + a * length / 2 * along + b * width / 2 * across + [0, 0, up * height / 2] for up in (1, -1)]
        for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
    ]
    return np.array([[LIDAR_FROM_EGO.points(point[None])[0] for point in edge] for edge in edges])


def box_corners(boxes):
    return LIDAR_FROM_EGO.points(boxes.corners().reshape(-1, 3).astype(float)).reshape(-1, 8, 3)


def pixel_of(point_m):
    ego = NUSCENES_RIG[LIDAR].ego_from_sensor.points(point_m[None])
    u, v, w = FRONT.image_from_camera @ FRONT.ego_from_camera.inverse().points(ego)[0]
    return np.array([u / w, v / w])


def moved_corners(matrix):
    """Where the six nearest corners were in the picture and where they are to be."""
    edges = corners_by_hand()
    middle = edges.reshape(8, 3).mean(axis=0)
    nearest = np.argsort([np.hypot(*edge[0, :2]) for edge in edges])[:3]
    points = edges[nearest].reshape(6, 3)
    return [(pixel_of(p), pixel_of((p - middle) @ matrix + middle)) for p in points]


def law(name, value, rng):
    """The published draws, written out."""
    if name == "scale":
        axis = int(rng.integers(3))
        return np.diag([1 + value * int(rng.choice([-1, 1])) if k == axis else 1.0 for k in range(3)])
    if name == "rotation":
        angle = np.deg2rad(rng.uniform(value - 1, value + 1)) * rng.choice([-1, 1])
        return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    b, d, e, f = rng.uniform(value - 0.05, value + 0.05, 4) * rng.choice([-1, 1], 4)
    return np.array([[1, 0, b], [d, 1, e], [f, 0, 1]])


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shear", (0.05, 0.10, 0.15, 0.20, 0.25)),
        ("scale", (0.04, 0.08, 0.12, 0.16, 0.20)),
        ("rotation", (1, 3, 5, 7, 9)),
    ],
)
def test_thu_cells_take_the_corners_of_seen_faces_where_the_matrix_says(name, values, severity, monkeypatch):
    faces = []
    monkeypatch.setattr(published_warp, "_patch_bent", lambda pixels, rectangle, points, shrinks: faces.append(points))
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"{name}-{severity}")
    for token in ("a", "b", "c"):
        faces.clear()
        scenario.apply(replace(CAR_ALONE, token=token), NoHistory())
        matrix = law(name, values[severity - 1], Draws(0, token, f"thu_{name}").generator("pictures"))
        corners = moved_corners(matrix)
        left, middle, right = (corners[k : k + 2] for k in np.argsort([c[0][0] for c in corners[::2]]) * 2)
        assert len(faces) == 2
        for (source, target), expected in zip(faces, (left + middle, middle + right), strict=True):
            assert source == pytest.approx(np.array([was for was, _ in expected]), abs=0.01)
            assert target == pytest.approx(np.array([there for _, there in expected]), abs=0.01)


def test_corners_are_carried_and_all_around_stays():
    camera_from_lidar = FRONT.ego_from_camera.inverse() @ NUSCENES_RIG[LIDAR].ego_from_sensor
    matrix = np.diag([1.0, 1.0, 1.2])
    out = bent(PLACES, box_corners(CAR), matrix, camera_from_lidar, FRONT.image_from_camera)
    corners = moved_corners(matrix)
    ends = np.array(corners).reshape(-1, 2)
    (left, top), (right, bottom) = np.floor(ends.min(axis=0)).astype(int), np.ceil(ends.max(axis=0)).astype(int)
    changed = (out != PLACES).any(axis=2)
    assert changed[top:bottom, left:right].mean() > 0.7
    changed[top:bottom, left:right] = False
    assert not changed.any()
    middle = ends.mean(axis=0)
    for was, there in corners:
        column, row = np.rint(there + 1.5 * np.sign(middle - there)).astype(int)
        found = out[row, column].astype(float)
        assert found[0] * 4 + 1.5 == pytest.approx(was[0], abs=5)
        assert found[1] * 2 + 0.5 == pytest.approx(was[1], abs=4)


def test_no_change_without_a_matrix_and_objects_at_the_edge_stay():
    camera_from_lidar = FRONT.ego_from_camera.inverse() @ NUSCENES_RIG[LIDAR].ego_from_sensor
    car = box_corners(CAR)
    same = bent(PLACES, car, np.eye(3), camera_from_lidar, FRONT.image_from_camera)
    assert np.abs(same.astype(int) - PLACES).max() <= 1
    grown = np.diag([1.0, 1.0, 1.2])
    # Half out of the picture, behind the camera, around the LiDAR.
    for elsewhere in (car + [7.0, 0, 0], car * [-1, -1, 1], car - car.mean(axis=1)):
        assert np.array_equal(bent(PLACES, elsewhere, grown, camera_from_lidar, FRONT.image_from_camera), PLACES)


def test_the_order_of_the_boxes_does_not_matter_the_nearest_is_bent_last():
    camera_from_lidar = FRONT.ego_from_camera.inverse() @ NUSCENES_RIG[LIDAR].ego_from_sensor
    near, far = box_corners(CAR), box_corners(CAR) + [-1.0, 8.0, 0]
    matrix = np.diag([1.0, 1.0, 1.2])
    both = [np.concatenate(pair) for pair in ((near, far), (far, near))]
    first, second = (bent(PLACES, corners, matrix, camera_from_lidar, FRONT.image_from_camera) for corners in both)
    assert np.array_equal(first, second)
    last = bent(PLACES, far, matrix, camera_from_lidar, FRONT.image_from_camera)
    last = bent(last, near, matrix, camera_from_lidar, FRONT.image_from_camera)
    assert np.array_equal(first, last)
    assert not np.array_equal(first, bent(PLACES, near, matrix, camera_from_lidar, FRONT.image_from_camera))


def test_one_or_two_faces_are_seen():
    def around(x, y, yaw):
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        return np.array([[2, 1], [2, -1], [-2, -1], [-2, 1]]) @ turn.T + [x, y]

    # Straight ahead: the rear; turned to the left: rear and left side; hardly turned: the side is too narrow to count.
    assert set(seen_edges(around(10, 0, 0.0)).tolist()) == {2, 3}
    assert set(seen_edges(around(10, 0, 0.6)).tolist()) == {0, 2, 3}
    assert set(seen_edges(around(30, 0, 0.02)).tolist()) == {2, 3}
    assert set(seen_edges(around(-10, 0, 0.0)).tolist()) == {0, 1}
    assert not len(seen_edges(around(0.3, 0.2, 0.3)))


def test_spline_is_scipys():
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(0)
    at, values = rng.uniform(-1, 1, (4, 2)), rng.uniform(-1, 1, (4, 2))
    columns, rows = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)
    theirs = interpolate.RBFInterpolator(at, values, kernel="thin_plate_spline", degree=1)(grid.reshape(-1, 2))
    assert spline(at, values, columns, rows) == pytest.approx(theirs.reshape(7, 9, 2), abs=1e-4)
    assert spline(np.array([[0, 0], [1, 1], [2, 2], [3, 3.0]]), values, columns, rows) is None


def test_pictures_of_objects_need_labels():
    for name in ("shear-1", "scale-1", "rotation-1"):
        scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == name)
        with pytest.raises(ValueError, match="expected labels in sample token-0"):
            scenario.apply(replace(CAR_ALONE, boxes=None, lidar=()), NoHistory())
