"""The page's samples: pictures of each run's kept frames with what it found, light enough for one page."""

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from fusion.report.colours import SHOWN_SCORE
from fusion.report.content import RunContent
from fusion.report.frame_file import load_frame
from fusion.report.gallery import NUM_SAMPLES, Found, file_name, gallery_frames, load_sample_detections
from fusion.report.pictures import bev_picture, in_ego_frame, views_picture
from fusion.robustness.cells import CLEAN
from sensors.camera import encode_jpeg
from sensors.frame import Frame
from sensors.rig import LIDAR_UNIT, RADAR_UNIT, UNITS

MAX_VARIANTS = 4
"""Scenarios shown of a sample."""
MAX_PICTURES = 16
"""Pairs of pictures over all runs: several runs share them out, first by fewer scenarios, then by fewer samples."""
MAX_BYTES = 3_800_000
"""Of all pictures as text: keeps the page below 5 MB."""
_QUALITIES = (80, 65, 50, 35, 20)


def samples(runs: Sequence[RunContent]) -> list[dict]:
    """By sample, in time: its facts and, by number of the run, the pictures under the scenarios that are shown."""
    with_frames = {number: frames for number, run in enumerate(runs) if (frames := gallery_frames(run.path))}
    if not with_frames:
        return []
    most_samples = max(1, min(NUM_SAMPLES, MAX_PICTURES // len(with_frames)))
    most_variants = max(1, min(MAX_VARIANTS, MAX_PICTURES // (len(with_frames) * most_samples)))
    by_token: dict[str, dict] = {}
    for number, frames in list(with_frames.items())[:MAX_PICTURES]:
        found = load_sample_detections(runs[number].path)
        for token in list(frames)[:: -(-len(frames) // most_samples)]:
            variants = _variants(runs[number], found, token, frames[token])[:most_variants]
            shown = [_drawn(title, load_frame(path), own) for title, path, own in variants]
            if shown:
                sample = by_token.setdefault(token, {"token": token, "runs": {}, **shown[0]["facts"]})
                sample["runs"][number] = shown
    _inline([shown for sample in by_token.values() for own in sample["runs"].values() for shown in own])
    return sorted(by_token.values(), key=lambda sample: sample["when"])


def _variants(run: RunContent, found: dict, token: str, paths: dict[str, Path]) -> list[tuple]:
    """Title, file and detections of a sample under each scenario that was kept, at the largest budget."""
    titles = {cell.scenario: cell.title for cell in run.cells}
    known = [scenario for scenario in titles if file_name(scenario) in paths]
    shown = known or [scenario for scenario in (CLEAN,) if scenario in paths]
    return [(titles.get(s, s), paths[file_name(s)], found_of(found, s, token)) for s in shown]


def found_of(found: dict, scenario: str, token: str) -> tuple[Found, float] | None:
    """What was found at the largest budget."""
    budgets = [budget for name, budget in found if name == scenario and token in found[name, budget]]
    return (found[scenario, max(budgets)][token], max(budgets)) if budgets else None


def _drawn(title: str, frame: Frame, found: tuple[Found, float] | None) -> dict:
    detections = None if found is None else in_ego_frame(found[0].boxes, frame)
    branches = None if found is None else found[0].branches
    num_labels = 0 if frame.boxes is None else int((frame.boxes.num_points != 0).sum())
    words = [f"{0 if detections is None else int((detections.score >= SHOWN_SCORE).sum())} detections shown"]
    words.append(f"{num_labels} labels")
    if found is not None:
        words += [
            f"LiDAR {branches[UNITS[LIDAR_UNIT]]}",
            f"radar {branches[UNITS[RADAR_UNIT]]}",
            f"{found[0].gflops:.2f} GFLOPs",
        ]
    return {
        "title": title,
        "caption": f"{title}: {', '.join(words)}",
        "views": views_picture(frame, detections, branches),
        "bev": bev_picture(frame, detections, size_px=640),
        "facts": {"scene": frame.scene, "conditions": sorted(frame.conditions), "when": frame.timestamp_us},
    }


def _inline(shown: list[dict]) -> None:
    """Pixels become data URIs, at the best quality at which all of them fit into MAX_BYTES."""
    pictures = [(one, kind) for one in shown for kind in ("views", "bev")]
    for quality in _QUALITIES:
        texts, left = [], MAX_BYTES
        for one, kind in pictures:
            texts.append(inlined(one[kind], quality))
            left -= len(texts[-1])
            if left < 0:
                break
        if left >= 0 or quality == _QUALITIES[-1]:
            break
    texts += [inlined(one[kind], quality) for one, kind in pictures[len(texts) :]]
    for (one, kind), text in zip(pictures, texts, strict=True):
        one[kind] = text


def inlined(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> str:
    """A data URI."""
    options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    done, encoded = cv2.imencode(".webp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if done:
        return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels)).decode("ascii")
