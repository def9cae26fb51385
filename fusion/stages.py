"""Declared training stages: what trains, who decides the route and how, under which budget, faults and losses.

A curriculum is a list of stages over training progress in [0, 1]. All of it is a pure function of (progress, key), so a
run that is resumed in any stage goes on exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from datamodules.fault_stages import FaultStage
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.relaxations import Relaxation
from sensors.rig import NUM_CAMERAS, UNITS

LESSONS = ("paired", "reinforce", "oracle", "faults", "median", "configurations")
"""Routes of stages that teach the router from losses, see ``fusion.routed_steps`` and ``fusion.router_lessons``."""

BY_ROUTER = ("learned", *LESSONS)
"""After a last stage with one of these routes the router decides."""

ROUTES = ("full", "fixed", "random", "sandwich", "custom", *BY_ROUTER)
EXECUTIONS = ("sparse", "masked")
LEAST = "least"
MODALITIES = ("camera", "lidar", "radar")
RATES = ("router", "others")


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: shown in logs and errors.
        until: training progress in (0, 1] at which the stage ends; the last stage ends at 1.
        trainable: prefixes of the parameters' names that train, or ``all``. The others stand still.
        route: who decides what runs: ``full`` (everything present), ``fixed`` (``units``), ``random`` (by ``keep`` and
            ``lite_share``), ``learned`` (the router), ``paired`` (two random routes per sample, whose losses teach the
            router), ``sandwich`` (the full route, which teaches the cheapest and a random one) or another one of
            LESSONS.
        units: for ``fixed``: names of UNITS that run; ``CAMERAS`` stands for the six views.
        keep: for ``random``: probability that a sensor group (camera, lidar, radar) runs, and that a ``view`` of a
            running camera group does. Missing ones are 1. Something present always runs.
        lite_share: for ``fixed`` and ``random``: share of the running units that run their lite branch.
        budget: share of the full cost given to the router; a pair is drawn uniformly per sample and step. The word
            ``least`` stands for the model's least budget.
        execution: ``sparse`` or ``masked``.
        step: for the route ``custom``: a ``fusion.custom_step.CustomStep``, which does the forward pass itself.
        losses: factors on the task's loss weights by name; ``{budget: 0}`` switches one off.
        relaxation: for the route ``learned``: how the router's choice gets its gradient in this stage; None for the
            router's own. After training the last stage's stays.
        temperature: of the relaxation; a pair falls (or rises) exponentially over the stage.
        faults: how much of the data's plan of faults acts: ``all``, ``none``, or a mapping of ``share`` (probability
            that a planned fault acts) and ``severity`` (factor on how far its level is from clean) to numbers in
            [0, 1]; a pair goes straight from the stage's start to its end. See ``datamodules.dose.FaultDose``.
        learning_rate_factor: on the learning rate of the schedule; a mapping gives the factors of ``router`` and of
            all ``others`` (missing: 1).
    """

    name: str
    until: float
    trainable: str | Sequence[str] = "all"
    route: str = "full"
    units: Sequence[str] = UNITS
    keep: Mapping[str, float] = field(default_factory=dict)
    lite_share: float = 0.0
    budget: float | str | Sequence[float | str] = 1.0
    execution: str = "sparse"
    step: Callable | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    relaxation: Relaxation | None = None
    temperature: float | Sequence[float] = 1.0
    faults: str | Mapping[str, object] = "all"
    learning_rate_factor: float | int | Mapping[str, float] = 1.0

    def __post_init__(self):
        _check(self, 0.0 < self.until <= 1.0, "until in (0, 1], a share of training", self.until)
        if self.trainable != "all":
            _check_list(self, "trainable to be all or a list", self.trainable, "router")
        _check_list(self, "units to be a list", self.units, "LIDAR")
        _check(self, self.route in ROUTES, f"route to be one of {', '.join(ROUTES)}", self.route)
        _check(self, self.step is not None or self.route != "custom", "a step for route custom", self.step)
        _check(self, self.execution in EXECUTIONS, "execution to be sparse or masked", self.execution)
        _check(self, 0.0 <= self.lite_share <= 1.0, "lite_share in [0, 1]", self.lite_share)
        unknown = sorted(set(self.units) - {*UNITS, "CAMERAS"})
        _check(self, not unknown and len(self.units) > 0, f"units among CAMERAS, {', '.join(UNITS)}", list(self.units))
        unknown = sorted(set(self.keep) - {*MODALITIES, "view"})
        shares = all(0.0 <= value <= 1.0 for value in self.keep.values())
        _check(self, not unknown and shares, "keep: probabilities of camera, lidar, radar, view", dict(self.keep))
        low, high = self.budget_ends(min_budget=1e-9)
        _check(self, 0.0 < low <= high <= 1.0, "budget in (0, 1], 'least', or a pair low <= high", self.budget)
        _check(self, min(ends_of(self.temperature)) > 0.0, "temperature above 0", self.temperature)
        if self.relaxation is not None:
            _check(self, self.route == "learned", "a relaxation for route learned alone", f"route {self.route}")
        self.fault_stage()
        if isinstance(self.learning_rate_factor, Mapping):
            unknown = sorted(set(self.learning_rate_factor) - set(RATES))
            _check(self, not unknown, f"learning_rate_factor of {' and '.join(RATES)}", unknown)

    def rate_factor(self, group: str) -> float:
        """Factor on the learning rate of a group of the optimiser."""
        if not isinstance(self.learning_rate_factor, Mapping):
            return float(self.learning_rate_factor)
        return float(self.learning_rate_factor.get("router" if group == "router" else "others", 1.0))

    def trains(self, name: str) -> bool:
        """Whether a parameter of this name trains in this stage."""
        return self.trainable == "all" or any(is_below(name, prefix) for prefix in self.trainable)

    def fault_stage(self) -> FaultStage:
        """What the data is told of ``faults``."""
        return FaultStage.of(self.name, self.until, self.faults)

    def budget_ends(self, min_budget: float) -> tuple[float, float]:
        """Lowest and highest budget, for a model whose least budget is ``min_budget``."""
        pair = [self.budget] * 2 if isinstance(self.budget, (int, float, str)) else self.budget
        return ends_of([min_budget if value == LEAST else value for value in pair])

    def budget_of(self, num_samples: int, min_budget: float, generator: torch.Generator) -> Float32[Tensor, "b"]:
        """One budget per sample."""
        low, high = self.budget_ends(min_budget)
        return (low + (high - low) * torch.rand(num_samples, generator=generator)).clamp(min_budget, 1.0)

    def choice_of(
        self, unit_present: Bool[Tensor, "b u"], generator: torch.Generator, branches: Bool[Tensor, "u k"] | None = None
    ) -> Int64[Tensor, "b u"]:
        """Branches of a route that nobody learnt (on the CPU); SKIP for absent units.

        Args:
            branches: which branches exist; without, all do.
        """
        unit_present = unit_present.cpu()
        runs = self._running(unit_present, generator) & unit_present
        lite = torch.rand(unit_present.shape, generator=generator) < self.lite_share
        has_lite, has_full = (True, True) if branches is None else (branches[:, LITE].cpu(), branches[:, FULL].cpu())
        lite = (lite & torch.as_tensor(has_lite)) | ~torch.as_tensor(has_full)
        return torch.where(runs, torch.where(lite, LITE, FULL), SKIP)

    def _running(self, unit_present: Bool[Tensor, "b u"], generator: torch.Generator) -> Bool[Tensor, "b u"]:
        if self.route == "fixed":
            named = [u in self.units or (i < NUM_CAMERAS and "CAMERAS" in self.units) for i, u in enumerate(UNITS)]
            return torch.tensor(named).expand_as(unit_present)
        if self.route == "random":
            return random_units(unit_present, self.keep, generator)
        return torch.ones_like(unit_present)


class Curriculum:
    """Stages one after the other."""

    def __init__(self, stages: Sequence[Stage]):
        self.stages = tuple(stages)
        if not self.stages:
            raise ValueError("expected at least one training stage, got none; see configs/stages")
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"expected stages whose 'until' rises and ends at 1, got {ends}; change 'until'")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"expected stages with different names, got {names}; rename one")

    def at(self, progress: float) -> Stage:
        """The stage that training is in; a stage's end belongs to the next one."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])

    def temperature(self, progress: float) -> float:
        """Temperature of the relaxation: exponential from the stage's start to its end."""
        stage = self.at(progress)
        index = self.stages.index(stage)
        begin = self.stages[index - 1].until if index else 0.0
        share = min(1.0, (progress - begin) / (stage.until - begin))
        start, end = ends_of(stage.temperature)
        return float(start * (end / start) ** share)

    def check(self, model: nn.Module, loss_names: Sequence[str], min_budget: float) -> None:
        """That the stages fit a model.

        Raises:
            ValueError: a prefix that names no parameter, a stage that trains nothing, an unknown loss, a budget below
                the model's least.
        """
        names = [name for name, _ in model.named_parameters()]
        tops = sorted({name.split(".")[0] for name in names})
        for stage in self.stages:
            for prefix in () if stage.trainable == "all" else stage.trainable:
                known = any(is_below(name, prefix) for name in names)
                _check(stage, known, f"trainable prefixes of parameters (such as {', '.join(tops)})", prefix)
            trains = any(stage.trains(name) for name in names)
            _check(stage, trains, "something to train", f"trainable={stage.trainable!r}")
            unknown = sorted(set(stage.losses) - set(loss_names))
            _check(stage, not unknown, f"losses among {', '.join(loss_names)}", ", ".join(unknown))
            enough = stage.route not in BY_ROUTER or stage.budget_ends(min_budget)[0] >= min_budget - 1e-9
            _check(stage, enough, f"a budget of at least {min_budget:.3f}, the model's '{LEAST}'", stage.budget)
            if hasattr(stage.step, "check"):
                stage.step.check(stage, model)


def random_units(
    unit_present: Bool[Tensor, "b u"], keep: Mapping[str, float], generator: torch.Generator
) -> Bool[Tensor, "b u"]:
    """Sensor groups and views kept at random; where nothing is left, one present unit drawn uniformly."""
    num_samples = len(unit_present)
    probability = torch.tensor([keep.get(name, 1.0) for name in MODALITIES])
    group = torch.rand(num_samples, len(MODALITIES), generator=generator) < probability
    view = torch.rand(num_samples, NUM_CAMERAS, generator=generator) < keep.get("view", 1.0)
    runs = torch.cat([group[:, :1] & view, group[:, 1:]], dim=1) & unit_present
    drawn = torch.where(unit_present, torch.rand(unit_present.shape, generator=generator), -1.0).argmax(dim=1)
    rescue = torch.nn.functional.one_hot(drawn, unit_present.shape[1]).bool()
    return torch.where(runs.any(dim=1, keepdim=True), runs, rescue & unit_present)


def ends_of(value: float | str | Sequence[float | str]) -> tuple[float, float]:
    """First and last value of a number or of a pair."""
    pair = [value] * 2 if isinstance(value, (int, float, str)) else list(value)
    if len(pair) != 2 or not all(isinstance(number, (int, float)) for number in pair):
        raise ValueError(f"expected a number or a pair of numbers in a training stage, got {value}")
    return float(pair[0]), float(pair[1])


def is_below(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def _check(stage: Stage, holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"stage '{stage.name}': expected {expected}; got {got}")


def _check_list(stage: Stage, expected: str, got: object, example: str) -> None:
    """A word is a sequence as well: of letters."""
    is_list = isinstance(got, Sequence) and not isinstance(got, str)
    _check(stage, is_list, f"{expected}, such as [{got if isinstance(got, str) else example}]", repr(got))
