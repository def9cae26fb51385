"""Speed of the faults: ``PYTHONPATH=PEER python benchmarks/faults.py [OUT.json]``.

Camera: the published corruptions against the PyPI package ``imagecorruptions`` at the same severity on one picture of
1600x900. Its folder PEER is made by ``pip install --target PEER --no-deps imagecorruptions scikit-image lazy_loader
imageio tifffile numba llvmlite 'setuptools<81'``. LiDAR: ``benchmarks/faults_lidar.py``. Milliseconds of processor time
of one core (so that a busy machine does not count), both sides in turns in one process.
"""

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
warnings.filterwarnings("ignore")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from faults_lidar import lidar_rows  # noqa: E402
from machine import write_results  # noqa: E402

from sensors.faults import published_blur, published_imagecorruptions  # noqa: E402
from sensors.faults.camera import CAMERA_FAULTS  # noqa: E402

SEED, SEVERITY, TIMES_FASTER = 0, 3, 5
OURS = {**vars(published_imagecorruptions), **vars(published_blur)}
SHARED = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur"),
    *("motion_blur", "zoom_blur", "fog", "snow", "brightness", "contrast", "saturate", "jpeg_compression", "pixelate"),
)


def picture(seed: int = SEED) -> np.ndarray:
    """1600x900: flat surfaces with hard edges under a bright sky, some texture, the noise of a sensor."""
    rng = np.random.default_rng(seed)
    surfaces = cv2.resize(rng.integers(20, 230, (18, 32, 3), dtype=np.uint8), (1600, 900), interpolation=cv2.INTER_AREA)
    surfaces = cv2.resize(surfaces[::9, ::16], (1600, 900), interpolation=cv2.INTER_NEAREST)
    texture = cv2.resize(rng.normal(0, 12, (225, 400, 1)), (1600, 900))[..., None]
    sky = np.linspace(60, -30, 900)[:, None, None]
    return np.clip(0.7 * surfaces + sky + texture + rng.normal(0, 2, (900, 1600, 3)), 0, 255).astype(np.uint8)


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def camera_rows(repeats: int = 3) -> tuple[list[dict], dict[str, str]]:
    """Rows {name, ours, peer, ratio, bar, holds}, the last one their median; and what the peer could not run."""
    corrupt, pixels = peer(), picture()
    rows, failed = [], {}
    for name in SHARED:
        mine, theirs = [], []
        try:
            corrupt(pixels[:90, :160].copy(), severity=SEVERITY, corruption_name=name)
        except Exception as error:  # whatever it is: the peer's failure is listed, not counted
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        OURS[name](pixels, SEVERITY, np.random.default_rng(SEED))
        for repeat in range(repeats):
            for k in range(3):
                rng = np.random.default_rng(3 * repeat + k)
                mine.append(cpu_ms(lambda name=name, rng=rng: OURS[name](pixels, SEVERITY, rng)))
            if not theirs or statistics.median(theirs) < 1000:
                np.random.seed(repeat)  # noqa: NPY002
                call = {"severity": SEVERITY, "corruption_name": name}
                theirs.append(cpu_ms(lambda call=call: corrupt(pixels, **call)))
        rows.append(row(f"camera {name}, severity {SEVERITY}", statistics.median(mine), statistics.median(theirs)))
    ratio = statistics.median(each["ratio"] for each in rows)
    bar = f"{TIMES_FASTER} times faster"
    name = f"camera, median of {len(rows)} shared types"
    median = {"name": name, "ours": None, "peer": None, "ratio": ratio, "bar": bar, "holds": ratio >= TIMES_FASTER}
    return [*rows, median], failed


def row(name: str, mine: float, theirs: float) -> dict:
    ratio = round(theirs / mine, 1)
    return {"name": name, "ours": round(mine, 1), "peer": round(theirs, 1), "ratio": ratio, "bar": None, "holds": None}


def peer() -> Callable:
    """The peer's function.

    Raises:
        SystemExit: it is not on the path.
    """
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        sys.exit(f"expected the package imagecorruptions on PYTHONPATH, got {error}; see the head of {__file__}")
    return corrupt


def catalogue_ms() -> dict[str, float]:
    """Of every camera fault of the catalogue at its third level."""
    pixels, times = picture(), {}
    for fault in CAMERA_FAULTS:
        effect, level = fault.effect.function, fault.levels[2]
        runs = [cpu_ms(lambda k=k: effect(pixels, level, np.random.default_rng(k))) for k in range(4)]  # noqa: B023
        times[fault.name] = round(statistics.median(runs[1:]), 1)
    return times


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else str(value)


def main(out: Path) -> None:
    cv2.setNumThreads(1)
    camera, failed = camera_rows()
    lidar = lidar_rows()
    rows = camera + lidar
    versions = {
        **{"numpy": np.__version__, "opencv": cv2.__version__},
        **{"imagecorruptions": version("imagecorruptions"), "scikit-image": version("scikit-image")},
    }
    more = {"peer_types_that_fail": failed, "catalogue_ms": catalogue_ms()}
    write_results(out, {"threads": 1}, versions, seed=SEED, rows=rows, **more)
    print(f"{'':52} {'ours':>8} {'peer':>9} {'ratio':>7}  holds  bar")
    for each in rows:
        mine, theirs, ratio, holds, bar = (shown(each[key]) for key in ("ours", "peer", "ratio", "holds", "bar"))
        print(f"{each['name']:52} {mine:>8} {theirs:>9} {ratio:>7}  {holds:5}  {bar}")
    for name, error in failed.items():
        print(f"the peer cannot run {name}: {error}")
    print("catalogue, third level, ms:", ", ".join(f"{name} {ms:g}" for name, ms in more["catalogue_ms"].items()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/faults.json"))
