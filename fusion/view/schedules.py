"""The plot of a training schedule: how likely each sensor is to fail, and how strongly, as training goes on.

Rules only promise a plan for a sample at a progress, so the curves count the plans of some hundred made-up samples. The
same samples are asked at every progress: curves of one draw are smooth, and a rule from outside is plotted like ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datamodules.inject import FaultInjector
from sensors.faults.protocol import Draws, Fault, scope_of
from sensors.rig import modality_of

SENSORS = ("camera", "lidar", "radar")
_TITLES = {"camera": "cameras", "lidar": "LiDAR", "radar": "radars"}
_ANY = "any fault"


@dataclass(frozen=True, eq=False)
class ScheduleCurves:
    """What was planned for a number of samples, over the progress of training.

    Attributes:
        progress: from 0 to 1.
        probability: by sensor, then by fault (and ``any fault``): share of samples.
        severity: likewise, mean place on the fault's ladder of those samples: 0 clean, 1 its fifth level; NaN where the
            fault hit none.
    """

    progress: Float[np.ndarray, "n"]
    probability: dict[str, dict[str, Float[np.ndarray, "n"]]]
    severity: dict[str, dict[str, Float[np.ndarray, "n"]]]


def schedule_curves(injector: FaultInjector, num_samples: int = 300, num_steps: int = 25) -> ScheduleCurves:
    """Count what the injector's rules plan."""
    progress = np.linspace(0, 1, num_steps)
    hits: dict[str, dict[str, np.ndarray]] = {sensor: {_ANY: np.zeros(num_steps)} for sensor in SENSORS}
    places: dict[str, dict[str, np.ndarray]] = {sensor: {_ANY: np.zeros(num_steps)} for sensor in SENSORS}
    for step, now in enumerate(progress.tolist()):
        for sample in range(num_samples):
            for sensor, strongest in _planned(injector, f"sample {sample}", now).items():
                for name, place in strongest.items():
                    hits[sensor].setdefault(name, np.zeros(num_steps))[step] += 1
                    places[sensor].setdefault(name, np.zeros(num_steps))[step] += place
    severity = {
        sensor: {
            name: np.divide(total, hits[sensor][name], out=np.full(num_steps, np.nan), where=hits[sensor][name] > 0)
            for name, total in by_fault.items()
        }
        for sensor, by_fault in places.items()
    }
    probability = {sensor: {name: count / num_samples for name, count in by.items()} for sensor, by in hits.items()}
    return ScheduleCurves(progress, probability, severity)


def _planned(injector: FaultInjector, token: str, progress: float) -> dict[str, dict[str, float]]:
    """By sensor, the strongest place on its ladder of every fault that is planned for a sample."""
    strongest: dict[str, dict[str, float]] = {}
    for number, rule in enumerate(injector.rules):
        for fault, level in rule.plan(Draws(injector.seed, token, f"rule {number}", 0), progress):
            if level == fault.clean:
                continue
            place = ladder_place(fault, level)
            for sensor in {modality_of(channel) for channel in scope_of(fault)}:
                known = strongest.setdefault(sensor, {})
                for name in (fault.name, _ANY):
                    known[name] = max(known.get(name, 0.0), place)
    return strongest


def ladder_place(fault: Fault, level: float) -> float:
    """0 at the clean level, 1/5 to 1 at the five levels, straight in between; ladders may fall."""
    ladder = np.array([fault.clean, *fault.levels], float)
    rising = 1.0 if ladder[-1] > ladder[0] else -1.0
    return float(np.interp(rising * level, rising * ladder, np.linspace(0, 1, len(ladder))))


def write_schedule(injector: FaultInjector, out: Path, title: str, num_samples: int = 300) -> Path:
    """Draw the curves into a picture; the file's suffix says which kind (png, svg, pdf).

    Raises:
        ValueError: a suffix that matplotlib cannot write.
    """
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise ValueError(f"expected out to end in .png, .svg or .pdf, got {out}")
    curves = schedule_curves(injector, num_samples)
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    for column, sensor in enumerate(SENSORS):
        axes[0, column].set_title(_TITLES[sensor])
        axes[1, column].set_xlabel("progress of training")
        names = [_ANY, *sorted(name for name in curves.probability[sensor] if name != _ANY)]
        _draw(axes[0, column], curves.progress, curves.probability[sensor], names)
        _draw(axes[1, column], curves.progress, curves.severity[sensor], names[1:])
        if len(names) > 1:
            axes[0, column].legend(fontsize=7, loc="upper left")
    axes[0, 0].set_ylabel("share of samples hit")
    axes[1, 0].set_ylabel("severity when hit (1: fifth level)")
    figure.suptitle(title)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    figure.savefig(temporary, format=out.suffix[1:])
    temporary.replace(out)
    return out


def _draw(axes: Axes, progress: np.ndarray, curves: dict[str, np.ndarray], names: Sequence[str]) -> None:
    for name in names:
        style = {"color": "black", "linewidth": 2.2, "linestyle": "--"} if name == _ANY else {"linewidth": 1.5}
        axes.plot(progress, curves[name], label=name, **style)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3)
