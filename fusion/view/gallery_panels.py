"""Panels of the gallery: a camera, the six of them, or the LiDAR or the radars from above. numpy and OpenCV alone."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sensors.boxes import Boxes
from sensors.camera import CameraImage, project
from sensors.frame import Frame
from sensors.lidar import LidarSweep

WIDTH_PX = 480
VIEW_HEIGHT_PX, BEV_HEIGHT_PX = 270, 400
BACKGROUND, FAINT, PALE, RADAR_COLOUR = (16, 21, 28), (42, 52, 64), (200, 209, 220), (255, 176, 32)
LIDAR_HALF_WIDTH_M, RADAR_HALF_WIDTH_M = 50.0, 75.0
_INSET_PX, _INSET_M = 170, 14.0
_ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
_EDGES = [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)]
_EDGES += [(i, i + 4) for i in range(4)]

Picture = UInt8[np.ndarray, "h w 3"]


def view_panel(frame: Frame, channel: str, with_labels: bool) -> Picture:
    """One camera; labels show where the vehicle believes the things to be. A lost camera is an empty tile."""
    return _view(frame, channel, (WIDTH_PX, VIEW_HEIGHT_PX), with_labels)


def views_panel(frame: Frame, with_labels: bool) -> Picture:
    """All six cameras, ahead above, back below."""
    size = (WIDTH_PX // 3, VIEW_HEIGHT_PX // 2)
    tiles = [_view(frame, channel, size, with_labels) for channel in _ORDER]
    return np.concatenate([np.concatenate(tiles[:3], axis=1), np.concatenate(tiles[3:], axis=1)], axis=0)


def _view(frame: Frame, channel: str, size: tuple[int, int], with_labels: bool) -> Picture:
    width, height = size
    image = frame.cameras.get(channel)
    if image is None:
        tile = np.full((height, width, 3), BACKGROUND, np.uint8)
        _write(tile, "lost", (width // 2 - 14, height // 2 + 4), PALE)
        return tile
    tile = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA)
    if with_labels and frame.boxes is not None:
        scale = np.array([width / image.pixels.shape[1], height / image.pixels.shape[0]])
        for start, end in _wireframes(frame.boxes.select(frame.boxes.num_points != 0), image):
            a, b = (np.rint(point * scale).astype(int).tolist() for point in (start, end))
            cv2.line(tile, a, b, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _wireframes(boxes: Boxes, image: CameraImage) -> list[tuple[np.ndarray, np.ndarray]]:
    """Edges in pixels of the boxes that are wholly ahead of the camera."""
    camera_from_ego = image.ego_from_camera.inverse()
    edges = []
    for corners in boxes.corners().astype(np.float64):
        pixel, depth_m = project(camera_from_ego.points(corners), image.image_from_camera)
        if (depth_m > 0.5).all():
            edges += [(pixel[a], pixel[b]) for a, b in _EDGES]
    return edges


def lidar_panel(frame: Frame, by_intensity: bool, focus_m: Float[np.ndarray, "2"]) -> Picture:
    """The LiDAR's newest sweep from above, forward up; the corner shows the surroundings of ``focus_m`` larger.

    Args:
        by_intensity: colour of the echo instead of the height.
        focus_m: x and y in the ego frame.
    """
    panel = _ground(LIDAR_HALF_WIDTH_M)
    inset = np.full((_INSET_PX, _INSET_PX, 3), BACKGROUND, np.uint8)
    if frame.lidar:
        _draw_points(panel, frame.lidar[0], by_intensity, _Window((0.0, 0.0), LIDAR_HALF_WIDTH_M, panel.shape))
        window = _Window(tuple(focus_m.tolist()), _INSET_M / 2, inset.shape)
        _draw_points(inset, frame.lidar[0], by_intensity, window, size_px=2)
        _draw_labels(inset, frame, window)
    else:
        _write(panel, "lost", (WIDTH_PX // 2 - 14, 60), PALE)
    _draw_labels(panel, frame, _Window((0.0, 0.0), LIDAR_HALF_WIDTH_M, panel.shape))
    panel[-_INSET_PX:, -_INSET_PX:] = inset
    cv2.rectangle(panel, (WIDTH_PX - _INSET_PX, BEV_HEIGHT_PX - _INSET_PX), (WIDTH_PX, BEV_HEIGHT_PX), PALE, 1)
    return panel


def radar_panel(frame: Frame) -> Picture:
    """The newest sweep of every radar from above: size by RCS, lines of half a second of compensated velocity."""
    panel = _ground(RADAR_HALF_WIDTH_M)
    window = _Window((15.0, 0.0), RADAR_HALF_WIDTH_M, panel.shape)
    _draw_labels(panel, frame, window)
    for sweeps in frame.radars.values():
        xyz_m, velocity_mps = sweeps[0].to_ego()
        tips = window.pixels(xyz_m[:, :2] + 0.5 * velocity_mps)
        radius = np.clip(np.rint(1.5 + sweeps[0].rcs_dbsm / 10), 1, 5).astype(int).tolist()
        moving = (np.linalg.norm(velocity_mps, axis=1) > 0.5).tolist()
        for point, tip, size, is_moving in zip(window.pixels(xyz_m[:, :2]), tips, radius, moving, strict=True):
            cv2.circle(panel, point.tolist(), size, RADAR_COLOUR, -1, cv2.LINE_AA)
            if is_moving:
                cv2.line(panel, point.tolist(), tip.tolist(), RADAR_COLOUR, 1, cv2.LINE_AA)
    if not frame.radars:
        _write(panel, "lost", (WIDTH_PX // 2 - 14, 60), PALE)
    return panel


class _Window:
    """A part of the ground, and its pixels: x forward up, y left to the left."""

    def __init__(self, center_m: tuple[float, float], half_width_m: float, shape: tuple[int, ...]):
        self.height, self.width = shape[:2]
        self.center_m, self.px_per_m = np.array(center_m), self.width / (2 * half_width_m)

    def pixels(self, xy_m: Float[np.ndarray, "n 2"]) -> np.ndarray:
        off = np.clip((xy_m - self.center_m) * self.px_per_m, -1e4, 1e4)
        return np.stack([self.width / 2 - off[:, 1], self.height / 2 - off[:, 0]], axis=1).astype(int)


def _ground(half_width_m: float) -> Picture:
    panel = np.full((BEV_HEIGHT_PX, WIDTH_PX, 3), BACKGROUND, np.uint8)
    window = _Window((0.0 if half_width_m == LIDAR_HALF_WIDTH_M else 15.0, 0.0), half_width_m, panel.shape)
    origin = window.pixels(np.zeros((1, 2)))[0].tolist()
    for radius_m in range(20, 200, 20):
        cv2.circle(panel, origin, round(radius_m * window.px_per_m), FAINT, 1, cv2.LINE_AA)
    cv2.drawMarker(panel, origin, (255, 255, 255), cv2.MARKER_TRIANGLE_UP, 9, 1)
    return panel


def _draw_points(panel: Picture, sweep: LidarSweep, by_intensity: bool, window: _Window, size_px: int = 1) -> None:
    if not len(sweep):
        return
    xyz_m = sweep.to_ego()
    # The root of the intensity: most of the ground is below a tenth of the scale.
    value = np.sqrt(sweep.intensity / 100) if by_intensity else (xyz_m[:, 2] + 0.5) / 4
    shade = np.clip(30 + 225 * value, 30, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(shade[:, None], cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[:, 0]
    x, y = window.pixels(xyz_m[:, :2]).T
    for dx in range(size_px):
        for dy in range(size_px):
            seen = (x + dx >= 0) & (x + dx < window.width) & (y + dy >= 0) & (y + dy < window.height)
            panel[y[seen] + dy, x[seen] + dx] = colours[seen]


def _draw_labels(panel: Picture, frame: Frame, window: _Window) -> None:
    if frame.boxes is None:
        return
    boxes = frame.boxes.select(frame.boxes.num_points != 0)
    for corners in boxes.corners().astype(np.float64):
        outline = window.pixels(corners[[2, 3, 7, 6], :2])
        cv2.polylines(panel, [outline.astype(np.int32)], True, (255, 255, 255), 1, cv2.LINE_AA)


def captioned(panel: Picture, text: str) -> Picture:
    """A panel with its words in the upper corner."""
    panel = np.ascontiguousarray(panel)
    width = 12 + round(7.4 * len(text))
    panel[:22, :width] = (panel[:22, :width] * 0.25).astype(np.uint8)
    _write(panel, text, (6, 15), (255, 255, 255))
    return panel


def _write(panel: Picture, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(panel, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
