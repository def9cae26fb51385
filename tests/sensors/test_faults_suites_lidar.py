"""LiDAR cells of the published suites against numbers from their definitions, severity by severity."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.suites import SUITES
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, LIDAR
from tests.sensors.labelled_frames import POINTS_PER_OBJECT, inside, labelled_frame
from tests.sensors.toy_frames import ListHistory

FRAME = labelled_frame(height=18, width=32)
LIDAR_ONLY = replace(FRAME, cameras={}, radars={})
SWEEP = LIDAR_ONLY.lidar[0]
NUM = len(SWEEP)
OF_OBJECTS = inside(SWEEP.to_ego(), FRAME.boxes)


def applied(suite, name, severity, token="token-0", frame=LIDAR_ONLY, history=None):
    scenario = next(s for s in SUITES[suite] if s.name == f"{name}-{severity}")
    return scenario.apply(replace(frame, token=token), history or NoHistory())[0]


def swept(suite, name, severity, token="token-0"):
    return applied(suite, name, severity, token).lidar[0]


def rows(sweep):
    return np.column_stack([sweep.xyz_m, sweep.intensity, sweep.ring.astype(np.float32)])


def kept_of(sweep):
    """Which of the clean points are still there, whatever the order."""
    there = {row.tobytes() for row in rows(sweep)}
    return np.array([row.tobytes() in there for row in rows(SWEEP)])


def severities(*values):
    return pytest.mark.parametrize(("severity", "value"), list(enumerate(values, start=1)), ids=str)


@severities(set(range(1, 32, 2)), {1, 5, 9, 13, 17, 21, 25, 29}, {1, 9, 17, 25})
def test_multicorrupt_beams_reducing(severity, value):
    sweep = swept("multicorrupt", "beams-reducing", severity)
    assert set(sweep.ring.tolist()) == value
    assert np.array_equal(kept_of(sweep), np.isin(SWEEP.ring, sorted(value)))


@severities(0.70, 0.80, 0.90)
def test_multicorrupt_points_reducing(severity, value):
    sweep = swept("multicorrupt", "points-reducing", severity)
    assert len(sweep) == round(NUM * (1 - value))
    assert kept_of(sweep).sum() == len(sweep)


@severities((0.2, 1), (0.4, 2), (0.6, 3))
def test_multicorrupt_spatial_misalignment(severity, value):
    share, angle_deg = value
    moved = []
    for i in range(60):
        frame = applied("multicorrupt", "spatial-misalignment", severity, f"t{i}")
        for sweep, was in zip(frame.lidar, LIDAR_ONLY.lidar, strict=True):
            moved.append(not np.array_equal(sweep.xyz_m, was.xyz_m))
            if moved[-1]:
                affine = np.linalg.lstsq(np.column_stack([was.xyz_m, np.ones(len(was))]), sweep.xyz_m, rcond=None)[0]
                assert affine[3] == pytest.approx([2, 0, 0], abs=1e-3)
                # Rx Ry Rz with blocks [c s; -s c]: the trace is 3 c^2 + s^3 or 3 c^2 - s^3, by hand.
                c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
                assert np.trace(affine[:3]) == pytest.approx(3 * c**2, abs=s**3 + 1e-4)
                assert np.allclose(affine[:3] @ affine[:3].T, np.eye(3), atol=1e-4)
    assert np.mean(moved) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(moved)))


@pytest.mark.parametrize(
    ("suite", "severity", "sigma_m", "jitter"),
    [
        *(("multicorrupt", k, s, (0.15, 0.2, 0.12)) for k, s in ((1, 0.06), (2, 0.10), (3, 0.13))),
        *(("robo3d", k, s, (0.1, 0.1, 0.05)) for k, s in ((1, 0.2), (2, 0.25), (3, 0.3))),
    ],
)
def test_lidar_motion_blur(suite, severity, sigma_m, jitter):
    offsets = []
    for i in range(40):
        off = swept(suite, "motion-blur", severity, f"t{i}").xyz_m - SWEEP.xyz_m
        offsets.append(off.mean(axis=0))
        assert off.std(axis=0) == pytest.approx(sigma_m * np.array(jitter), rel=0.1)
    assert np.std(offsets) == pytest.approx(sigma_m, rel=4 / np.sqrt(2 * 120))


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_multicorrupt_temporal_misalignment(severity):
    share = (0.2, 0.4, 0.6)[severity - 1]
    before = replace(labelled_frame(height=18, width=32, seed=50), scene=FRAME.scene)
    scene = [before, FRAME]
    hits = {channel: [] for channel in (*CAMERAS, LIDAR)}
    for i in range(80):
        frame = applied("multicorrupt", "temporal-misalignment", severity, f"t{i}", FRAME, ListHistory(scene, 1))
        for channel in CAMERAS:
            was, old = FRAME.cameras[channel], before.cameras[channel]
            hits[channel].append(np.array_equal(frame.cameras[channel].pixels, old.pixels))
            assert frame.cameras[channel].ego_from_camera is was.ego_from_camera
            assert hits[channel][-1] or frame.cameras[channel] is was
        stale = [sweep.xyz_m is old.xyz_m for sweep, old in zip(frame.lidar, before.lidar, strict=True)]
        assert len(set(stale)) == 1
        hits[LIDAR].append(stale[0])
    means = [np.mean(hits[channel]) for channel in hits]
    assert means == pytest.approx([share] * 7, abs=4 * np.sqrt(0.25 / 80))
    assert len({tuple(values) for values in hits.values()}) == 7
    first = applied("multicorrupt", "temporal-misalignment", 3, "t1", before, ListHistory(scene, 0))
    assert first.lidar[0].xyz_m is before.lidar[0].xyz_m


@severities((0.02, 0.008), (0.03, 0.008), (0.06, 0.05))
def test_multicorrupt_fog(severity, value):
    fading_of_unmoved("multicorrupt", severity, value[0])


@severities(0.005, 0.01, 0.02, 0.03, 0.06)
def test_thu_fog(severity, value):
    fading_of_unmoved("thu-nuscenes-c", severity, value)


@severities(0.06, 0.06, 0.06)
def test_robo3d_fog(severity, value):
    fading_of_unmoved("robo3d", severity, value)


def fading_of_unmoved(suite, severity, alpha):
    """Points that keep their place have round(i exp(-2 alpha r))."""
    foggy = swept(suite, "fog", severity)
    assert len(foggy) == NUM
    same = (foggy.xyz_m == SWEEP.xyz_m).all(axis=1)
    range_m = np.linalg.norm(SWEEP.xyz_m.astype(float), axis=1)
    faded = np.round(SWEEP.intensity * np.exp(-2 * alpha * range_m))
    # Whoever moved was outshone by the fog; nobody is brighter for having stayed.
    assert 0.02 < same.mean() <= 1
    assert foggy.intensity[same] == pytest.approx(faded[same], abs=1)


@pytest.mark.parametrize(("suite", "severity"), [(s, k) for s in ("multicorrupt", "robo3d") for k in (1, 2, 3)])
def test_lidar_snow_keeps_rows_and_adds_near_flakes(suite, severity):
    snowy = swept(suite, "snow", severity)
    assert 0 < len(snowy) <= NUM
    assert kept_of(snowy).sum() < NUM


def moved_by(sweep):
    """Ranges of the points that are not where a clean one is."""
    clean = {row.tobytes() for row in SWEEP.xyz_m}
    moved = [row for row in sweep.xyz_m if row.tobytes() not in clean]
    return np.linalg.norm(np.array(moved).reshape(-1, 3), axis=1)


@severities(7.7e-7, 5.0e-6, 1.4e-5, 2.1e-5, 3.5e-5)
def test_thu_snow(severity, value):
    # More snow, more flakes in front of what is behind them.
    flakes = moved_by(swept("thu-nuscenes-c", "snow", severity))
    assert flakes.mean() < 0.5 * np.linalg.norm(SWEEP.xyz_m, axis=1).mean()
    if severity > 1:
        assert len(flakes) > len(moved_by(swept("thu-nuscenes-c", "snow", severity - 1)))


@severities(0.20, 0.73, 1.5625, 3.125, 7.29)
def test_thu_rain(severity, value):
    sweep = swept("thu-nuscenes-c", "rain", severity)
    # Published: lost points stay in the cloud, at the origin.
    assert len(sweep) == NUM
    range_m, was_m = (np.linalg.norm(s.xyz_m, axis=1) for s in (sweep, SWEEP))
    kept = (np.abs(range_m - was_m) < 0.5) & (sweep.intensity > 5)
    assert kept.mean() > 0.9
    fading = -np.log(sweep.intensity[kept] / SWEEP.intensity[kept]) / (2 * was_m[kept])
    # Marshall and Palmer's drops from .05 mm on, each taking twice its cross-section: by hand, in 1/m.
    slope, edge = 4.1 * value**-0.21, 0.05
    integral = np.exp(-slope * edge) * (edge**2 / slope + 2 * edge / slope**2 + 2 / slope**3)
    assert np.median(fading) == pytest.approx(1e-6 * np.pi / 2 * 8000 * integral, rel=0.03)


@severities(0.01, 0.02, 0.03, 0.04, 0.05)
def test_thu_sunlight_without_cameras(severity, value):
    off = rows(swept("thu-nuscenes-c", "sunlight", severity)) - rows(SWEEP)
    hit = np.abs(off[:, :3]).max(axis=1) > 0
    assert hit.sum() == int(value * NUM)
    assert off[hit, :4].std() == pytest.approx(2.0, rel=4 / np.sqrt(8 * hit.sum()))


@severities(0.004, 0.008, 0.012, 0.016, 0.020)
def test_thu_crosstalk(severity, value):
    noise_on_share("thu-nuscenes-c", severity, value)


@severities(0.03, 0.04, 0.05)
def test_robo3d_crosstalk(severity, value):
    noise_on_share("robo3d", severity, value)


def noise_on_share(suite, severity, share):
    off = np.concatenate(
        [rows(swept(suite, "crosstalk", severity, f"t{i}"))[:, :4] - rows(SWEEP)[:, :4] for i in range(5)]
    )
    hit = np.abs(off[:, :3]).max(axis=1) > 0
    assert hit.sum() == 5 * int(share * NUM)
    assert off[hit].std() == pytest.approx(3.0, rel=4 / np.sqrt(8 * hit.sum()))


@severities(0.06, 0.12, 0.18, 0.24, 0.30)
def test_thu_density_decrease(severity, value):
    # The published arithmetic rounds twice, so up to one point off per fifth.
    assert len(swept("thu-nuscenes-c", "density-decrease", severity)) == pytest.approx(NUM * (1 - value), abs=2)


@severities(2, 3, 5, 7, 10)
def test_thu_cutout(severity, value):
    sweep = swept("thu-nuscenes-c", "cutout", severity)
    assert len(sweep) == NUM - value * int(0.02 * NUM)
    assert kept_of(sweep).sum() == len(sweep)


@severities(105, 90, 75, 60, 45)
def test_thu_fov_lost(severity, value):
    sweep = swept("thu-nuscenes-c", "fov-lost", severity)
    # From +y, the front of nuScenes' LiDAR frame.
    expected = SWEEP.xyz_m[:, 1] >= np.cos(np.deg2rad(value)) * np.hypot(*SWEEP.xyz_m[:, :2].T)
    assert np.array_equal(kept_of(sweep), expected)


@severities(0.02, 0.04, 0.06, 0.08, 0.10)
def test_thu_gaussian_and_uniform_noise_on_all_columns(severity, value):
    normal = rows(swept("thu-nuscenes-c", "gaussian-lidar", severity)) - rows(SWEEP)
    assert normal[:, :4].std(axis=0) == pytest.approx([value] * 4, rel=0.08)
    flat = rows(swept("thu-nuscenes-c", "uniform-lidar", severity)) - rows(SWEEP)
    assert np.abs(flat[:, :4]).max(axis=0) == pytest.approx([value] * 4, rel=0.02)
    assert flat[:, :4].std() == pytest.approx(value / np.sqrt(3), rel=0.05)


@severities(30, 25, 20, 15, 10)
def test_thu_impulse_noise(severity, value):
    off = rows(swept("thu-nuscenes-c", "impulse-lidar", severity))[:, :4] - rows(SWEEP)[:, :4]
    hit = np.abs(off).max(axis=1) > 1e-3
    assert hit.sum() == NUM // value
    assert np.abs(off[hit]) == pytest.approx(np.full((hit.sum(), 4), 0.1), abs=1e-4)


@severities(0.2, 0.4, 0.6, 0.8, 1.0)
def test_thu_moving_object(severity, value):
    sweep = swept("thu-nuscenes-c", "moving-object", severity)
    steps = []
    for mask in OF_OBJECTS:
        old = SWEEP.xyz_m[mask]
        order = {round(float(i), 4) for i in old[:, 2]}
        there = np.array([round(float(z), 4) in order for z in sweep.xyz_m[:, 2]])
        new = sweep.xyz_m[there][:, 0].sum() - old[:, 0].sum()
        x = old[:, 0]
        third = x.min() + (x.max() - x.min()) / 3
        # All beyond the first third by c, the others by half of it, but for the one at the very edge.
        expected = value * (x > third).sum() + value / 2 * ((x <= third).sum() - 1)
        extra = there.sum() - mask.sum()
        steps.append(abs(new - expected) < 0.05 if extra == 0 else True)
    assert all(steps)
    still = ~OF_OBJECTS.any(axis=0)
    assert kept_of(sweep)[still].all()
    assert not kept_of(sweep)[~still].all()


@severities((0.02, 0.002), (0.04, 0.004), (0.06, 0.006), (0.08, 0.008), (0.10, 0.010))
def test_thu_motion_compensation(severity, value):
    sigma_m, sigma_entry = value
    sweep = swept("thu-nuscenes-c", "motion-compensation", severity)
    off = sweep.xyz_m - SWEEP.xyz_m
    # Of each coordinate: the shift, and three entries times the coordinates.
    expected = np.sqrt(sigma_m**2 + sigma_entry**2 * np.square(SWEEP.xyz_m).sum(axis=1).mean())
    assert np.sqrt(np.square(off).mean()) == pytest.approx(expected, rel=0.35)
    azimuth = np.arctan2(SWEEP.xyz_m[:, 1], SWEEP.xyz_m[:, 0])
    one = np.floor((azimuth + np.pi) / (2 * np.pi) * 100) == 42
    design = np.column_stack([SWEEP.xyz_m[one], np.ones(one.sum())])
    fit = np.linalg.lstsq(design, sweep.xyz_m[one], rcond=None)[0]
    assert design @ fit == pytest.approx(sweep.xyz_m[one], abs=1e-3)


@severities(0.1, 0.2, 0.3, 0.4, 0.5)
def test_thu_local_density(severity, value):
    objects_lose("thu-nuscenes-c", "local-density", severity, [int(value * POINTS_PER_OBJECT)] * 3)


@severities(0.3, 0.4, 0.5, 0.6, 0.7)
def test_thu_local_cutout(severity, value):
    objects_lose("thu-nuscenes-c", "local-cutout", severity, [int(value * POINTS_PER_OBJECT)] * 3)


@severities(0.75, 0.85, 0.95)
def test_robo3d_incomplete_echo(severity, value):
    # Pedestrians are no vehicles.
    objects_lose("robo3d", "incomplete-echo", severity, [int(value * POINTS_PER_OBJECT)] * 2 + [0])


def objects_lose(suite, name, severity, lost):
    kept = kept_of(swept(suite, name, severity))
    assert [int((~kept)[mask].sum()) for mask in OF_OBJECTS] == pytest.approx(lost, abs=1)
    assert kept[~OF_OBJECTS.any(axis=0)].all()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("local-gaussian", (0.02, 0.04, 0.06, 0.08, 0.10)),
        ("local-uniform", tuple(s / np.sqrt(3) for s in (0.02, 0.04, 0.06, 0.08, 0.10))),
        ("local-impulse", tuple(0.1 * np.sqrt(POINTS_PER_OBJECT // d / 60) for d in (30, 25, 20, 15, 10))),
    ],
)
def test_thu_local_noise(name, sizes, severity):
    sweep = swept("thu-nuscenes-c", name, severity)
    assert kept_of(sweep)[~OF_OBJECTS.any(axis=0)].all()
    # The intensity of all points of the objects is 30 in the toy frame.
    background = {row.tobytes() for row in rows(SWEEP)[~OF_OBJECTS.any(axis=0)]}
    noisy = np.array([row.tobytes() not in background for row in rows(sweep)])
    assert noisy.sum() == 3 * POINTS_PER_OBJECT
    off = sweep.intensity[noisy] - 30
    assert np.sqrt(np.square(off).mean()) == pytest.approx(sizes[severity - 1], rel=0.25)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["shear", "scale", "rotation"])
def test_thu_object_shapes(name, severity):
    sweep = swept("thu-nuscenes-c", name, severity)
    assert len(sweep) == NUM
    assert kept_of(sweep)[~OF_OBJECTS.any(axis=0)].all()
    fresh = sweep.select(np.flatnonzero(sweep.intensity == 30)).xyz_m
    for row, mask in enumerate(OF_OBJECTS):
        old = SWEEP.xyz_m[mask]
        box = FRAME.boxes.select(np.array([row])).moved(SWEEP.ego_from_lidar.inverse())
        near = fresh[np.linalg.norm(fresh[:, :2] - box.center_m[0, :2], axis=1) < 6]
        design = np.column_stack([old, np.ones(len(old))])
        found = [near[k : k + len(old)] for k in range(0, len(near) - len(old) + 1, len(old))]
        linear = [np.linalg.lstsq(design, new, rcond=None)[0][:3].T for new in found]
        fitted = [
            np.abs(design @ np.vstack([m.T, np.linalg.lstsq(design, n, rcond=None)[0][3]]) - n).max()
            for m, n in zip(linear, found, strict=True)
        ]
        matrix = linear[int(np.argmin(fitted))]
        if name == "rotation":
            angle = np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))
            assert abs(abs(angle) - (1, 3, 5, 7, 9)[severity - 1]) <= 1.01
        elif name == "scale":
            change = 0.04 * severity
            assert np.abs(np.linalg.svd(matrix)[1] - 1).max() == pytest.approx(change, abs=0.01)
        else:
            c = 0.05 * severity
            assert 0.2 * c < np.abs(matrix - np.eye(3)).max() < 3 * (c + 0.05)


@severities(8, 16, 24)
def test_robo3d_beam_missing_and_cross_sensor(severity, value):
    lost = [set(range(32)) - set(swept("robo3d", "beam-missing", severity, f"t{i}").ring.tolist()) for i in range(60)]
    assert set().union(*lost) <= set(range(2, 29))
    # Distinct ones of n draws with replacement from 27 rings.
    expected = 27 * (1 - (26 / 27) ** value)
    assert np.mean([len(rings) for rings in lost]) == pytest.approx(expected, abs=0.8)
    both = applied("robo3d", "beam-missing", severity).lidar
    assert set(both[0].ring.tolist()) == set(both[1].ring.tolist())
    step = {8: 4, 16: 2, 24: 1.33}[value]
    rings = sorted({int(1 + k * step) for k in range(64) if 1 + k * step < 32})
    crossed = swept("robo3d", "cross-sensor", severity)
    assert len(rings) == value
    assert np.array_equal(rows(crossed), rows(SWEEP)[~np.isin(SWEEP.ring, rings)][::2])


@severities((0.2, 0.2), (1.0, 0.3), (1.2, 0.7))
def test_robo3d_wet_ground(severity, value):
    frame = replace(labelled_frame(height=18, width=32, num_ground=1200), cameras={}, radars={})
    wet, dry = applied("robo3d", "wet-ground", severity, frame=frame).lidar[0], frame.lidar[0]
    floor = np.abs(dry.to_ego()[:, 2]) < 1e-3
    there = {row.tobytes() for row in wet.xyz_m}
    left = np.array([row.tobytes() in there for row in dry.xyz_m])
    # What stands high is untouched; of the ground less is left, and darker, the more water there is.
    assert left[dry.to_ego()[:, 2] > 1].all()
    seen = np.abs(wet.to_ego()[:, 2]) < 1e-3
    assert wet.intensity[seen].mean() < 20 if seen.any() else severity == 3
    if severity > 1:
        milder = applied("robo3d", "wet-ground", severity - 1, frame=frame).lidar[0]
        assert left[floor].sum() < (np.abs(milder.to_ego()[:, 2]) < 1e-3).sum()
    few = swept("robo3d", "wet-ground", severity)
    # Published: fewer than 1000 ground points stay as they are.
    assert np.array_equal(rows(few), rows(SWEEP))


def test_nuscenes_r():
    names = [scenario.name for scenario in SUITES["nuscenes-r"]]
    assert names[0] == "clean"
    results = {s.name: s.apply(FRAME, NoHistory())[0] for s in SUITES["nuscenes-r"]}
    assert set(results["four-beams"].lidar[0].ring.tolist()) == {1, 9, 17, 25}
    assert results["lidar-drop"].lidar == ()
    limited = results["limited-view-60"].lidar[0]
    front = SWEEP.xyz_m[:, 1] >= 0.5 * np.hypot(*SWEEP.xyz_m[:, :2].T)
    assert np.array_equal(kept_of(limited), front)
    assert results["all-views-dropped"].cameras == {}
    assert all((results["occlusion"].cameras[c].pixels != FRAME.cameras[c].pixels).any() for c in CAMERAS)
    scenario = next(s for s in SUITES["nuscenes-r"] if s.name == "object-failure")
    failed = []
    for i in range(100):
        lidar = scenario.apply(replace(LIDAR_ONLY, token=f"t{i}"), NoHistory())[0].lidar
        hits = [not inside(sweep.to_ego(), FRAME.boxes).any() for sweep in lidar]
        assert len(set(hits)) == 1
        failed.append(hits[0])
        assert len(lidar[0]) == NUM - hits[0] * 3 * POINTS_PER_OBJECT
    assert np.mean(failed) == pytest.approx(0.5, abs=0.2)
