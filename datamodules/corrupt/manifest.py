"""What a copy says about itself."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version as version_of

from datamodules.corrupt.request import CopyRequest

MANIFEST, FAULTS = "manifest.json", "faults.json"
NOTICE = (
    "If the source is nuScenes, this folder is material derived from nuScenes (Motional AD Inc.; "
    "https://www.nuscenes.org, H. Caesar et al., CVPR 2020): it stays under the nuScenes terms of use "
    "(https://www.nuscenes.org/terms-of-use) and CC BY-NC-SA 4.0: non-commercial use, share-alike, with attribution. "
    "Measurements were changed on purpose as described here; neither nuScenes nor Motional endorses it. Files that no "
    "fault changed may be hard links to the source: never edit them in place."
)


def manifest_of(
    request: CopyRequest, records: Sequence[dict], num_others: int, num_removed: int, num_lacking: int
) -> dict:
    """What was applied to what, with which seed and versions. Equal requests give equal manifests.

    Args:
        records: of all samples, in order.
        num_others: files that belong to no keyframe and are kept as they are.
        num_removed: rows that were taken out of ``sample_data``.
        num_lacking: sweeps that the source's tables name and its disk lacks.
    """
    channels = Counter(channel for record in records for channel in record["lost_channels"])
    what = request.scenario or request.fault
    return {
        "title": f"{request.version} of {request.root.resolve().name}, corrupted by {what}",
        "notice": NOTICE,
        "request": request.to_json(),
        "versions": {
            "dynfusion": version_of("dynfusion"),
            "python": platform.python_version(),
            **{name: version_of(name) for name in ("numpy", "opencv-python-headless")},
        },
        "samples": len(records),
        "harmed_samples": sum(bool(record["faults"]) for record in records),
        "files": {
            "unchanged": sum(record["unchanged"] for record in records) + num_others,
            "written": sum(len(record["written"]) for record in records),
            "written_bytes": sum(sum(record["written"].values()) for record in records),
            "without_file": sum(len(record["lost"]) for record in records),
            "with_new_calibration_or_time": sum(len(record["changed"]) for record in records),
            "taken_out_of_sample_data": num_removed,
            "sweeps_that_the_source_lacks": num_lacking,
        },
        "lost_keyframes_by_channel": dict(sorted(channels.items())),
        "faults_by_sample": FAULTS,
    }


def faults_of(records: Sequence[dict]) -> dict[str, dict]:
    """By sample token, the names of the applied faults and the channels that they took away."""
    return {record["token"]: {"faults": record["faults"], "lost": record["lost_channels"]} for record in records}


def encoded(content) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
