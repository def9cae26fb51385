"""dynfusion stream run=RUN [scene=NAME] [budget=1.0] [policy=argmax] [deadline_ms=100] [glance=reduced] [key=value ...]

Runs a scene in order, one keyframe at a time, as a vehicle would: only what the route chose is read from disk, decoded
and voxelised. Prints route and milliseconds of every frame and writes stream.jsonl into the run directory. Ctrl-C ends
it with the frames so far summed up.

scene is a scene's name; without it, the first of the split; scene=all for all of it. policy: argmax, hysteresis
(margin=0.5 hold=2), deadline (deadline_ms and a latency table: dynfusion costs run=RUN), bucket (budget is the rate,
burst=0.5) or threshold (dynfusion calibrate run=RUN). glance says what the router sees: full (all pictures decoded),
reduced (pictures at an eighth, LiDAR and radar as last read) or last (nothing opened). look_every_s=5 looks again at
sensors that do not run. wake_ms is what a sensor needs to wake up.

Where dynfusion adaptive has found settings for exits and tokens, they share the budget with the router (policy argmax
and hysteresis; with the others the route alone keeps it). A frame that leaves at an exit before the cameras does not
decode them in full; their files stay closed if the glance does not open them either (glance=last).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    scene: str = ""
    split: str = ""
    budget: float = 1.0
    policy: str = "argmax"
    margin: float = 0.5
    hold: int = 2
    burst: float = 0.5
    deadline_ms: float = 0.0
    wake_ms: float = 0.0
    glance: str = "reduced"
    look_every_s: float = 0.0
    max_frames: int = 0
    device: str = ""
    allow: list[str] = field(default_factory=list)


POLICIES = ("argmax", "hysteresis", "deadline", "bucket", "threshold")
SHARING = ("argmax", "hysteresis")
"""Policies that keep a bound on the route, and leave the rest of a budget to exits and tokens."""


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.stream.record import summary_of

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion stream --help")
    console, done, interrupted = Console(), [], False
    stream, places, path = opened_stream(options, overrides)
    with open(path, "w", encoding="utf-8") as file:
        try:
            for frame in stream.run(places):
                done.append(frame)
                file.write(json.dumps(frame.line()) + "\n")
                file.flush()
                console.print(frame_line(len(done), frame), markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            interrupted = True
    if done:
        console.print(summary_table(summary_of(done), options.run))
    return 130 if interrupted else 0


def opened_stream(options: Options, overrides: list[str]):
    """The stream, the frames to run, and where to write them."""
    from fusion.commands.runs import device_named, open_run
    from fusion.stream.runner import Stream, StreamSettings
    from fusion.stream.senses import SceneSenses

    opened = open_run(Path(options.run), overrides, options.allow, calibrated=options.policy in SHARING)
    split = options.split or opened.config.data.val_split
    model, frames = opened.model.to(device_named(options.device)), opened.data.frames(split)
    if opened.plan_source is not None:
        raise ValueError(f"expected a run whose router was trained, got {options.run}, which ends with another route")
    model.router.policy = policy_of(options, model, opened.directory)
    newest_s = 0.02 if model.lidar is None else model.lidar.newest_s
    look_every_s = options.look_every_s or None
    preparation = opened.data.clean_preparation
    senses = SceneSenses(frames, preparation, options.glance, model.router.inputs, newest_s, look_every_s)
    settings = StreamSettings(options.budget, options.deadline_ms or None, options.wake_ms)
    places = scene_places(frames, options.scene)
    return Stream(model, senses, settings), places[: options.max_frames or None], opened.directory.path / "stream.jsonl"


def scene_places(frames, scene: str) -> list[int]:
    """Places of a scene's keyframes in the split, in time.

    Raises:
        ValueError: the split has no such scene.
    """
    names = [frames.index.scenes.name[row].decode() for row in frames.scene_rows]
    wanted = scene or names[0]
    if wanted == "all":
        return list(range(len(names)))
    if wanted not in names:
        known = list(dict.fromkeys(names))
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"expected scene=all or one of the split's scenes {shown}, got '{wanted}'")
    return [place for place, name in enumerate(names) if name == wanted]


def policy_of(options: Options, model, directory):
    """The policy of that name; None for the router's own search."""
    from fusion.routing.policies import ArgmaxPolicy, DeadlinePolicy
    from fusion.routing.temporal_policies import HysteresisPolicy, TokenBucketPolicy

    if options.policy == "argmax":
        return None
    if options.policy == "hysteresis":
        return HysteresisPolicy(ArgmaxPolicy(), options.margin, options.hold)
    if options.policy == "bucket":
        return TokenBucketPolicy(ArgmaxPolicy(), options.budget, options.burst)
    if options.policy == "threshold":
        from fusion.robustness.fingerprint import model_word
        from fusion.routing.calibration import Calibration

        return Calibration.read_for(directory.path / "thresholds.json", model_word(model)).policy(options.budget)
    if options.policy == "deadline":
        from fusion.routing.latency import LatencyTable

        if not options.deadline_ms > 0:
            raise ValueError("expected deadline_ms above 0 for policy=deadline; add deadline_ms=100")
        path = directory.path / "latency.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a latency table at {path}; measure one: dynfusion costs run={options.run}"
            )
        return DeadlinePolicy(LatencyTable.load(path), options.deadline_ms)
    raise ValueError(f"expected policy to be one of {', '.join(POLICIES)}, got '{options.policy}'")


def frame_line(number: int, frame) -> str:
    """Route and milliseconds of one frame, on one line."""
    line = frame.line()
    route = " ".join(f"{unit.removeprefix('CAM_')}:{branch}" for unit, branch in line["route"].items()) or "nothing"
    parts = " ".join(f"{name} {value:.1f}" for name, value in frame.ms.items())
    late = "  LATE" if frame.missed else ""
    left = "" if frame.exit is None else f"  left at {frame.exit}"
    return (
        f"{number:4d}  {frame.share:4.0%}  {frame.total_ms:7.1f} ms ({parts}){late}  {len(frame.boxes)} boxes  "
        f"{route}{left}"
    )


def summary_table(summary, title: str):
    """Milliseconds by part, and below them what else there is to say."""
    from rich.table import Table

    missed = "" if summary.num_missed is None else f"  {summary.num_missed} late"
    left = f"  {summary.left_share:.0%} left early" if summary.left_share else ""
    runs = "  ".join(f"{unit} {share:.0%}" for unit, share in summary.ran_share.items())
    caption = (
        f"{summary.num_frames} frames{missed}{left}  {summary.share:.0%} of the full cost  "
        f"{summary.joules:.2f} J (model)  {summary.num_switches} switches\n{runs}"
    )
    table = Table(title=title, caption=caption)
    for heading in ("part", "mean ms", "p95 ms"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, mean in summary.mean_ms.items():
        table.add_row(name, f"{mean:.1f}", f"{summary.p95_ms[name]:.1f}")
    return table
