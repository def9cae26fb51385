"""What a stage of training changes beside the loss: what trains, how the router decides, which faults the data has."""

import math

from torch import nn

from fusion.routing.relaxations import Relaxation
from fusion.stages import Curriculum, Stage


class StageEntry:
    """Puts a model into the stage that progress has reached. Keeps nothing of its own that a resumed run would miss.

    Args:
        model: what trains.
        curriculum: the stages.

    Raises:
        ValueError: a stage names a relaxation, and the router has none to put it in place of, or one of them learns.
    """

    def __init__(self, model: nn.Module, curriculum: Curriculum):
        self.model, self.curriculum = model, curriculum
        self._own: Relaxation | None = getattr(model.router, "relaxation", None)
        self._entered: Stage | None = None
        named = [stage for stage in curriculum.stages if stage.relaxation is not None]
        for stage in named:
            if self._own is None:
                raise ValueError(
                    f"stage '{stage.name}': expected a router with a relaxation to put another in place of, got "
                    f"{type(model.router).__name__} without; leave relaxation out"
                )
            for one in (self._own, stage.relaxation):
                if isinstance(one, nn.Module) and one.state_dict():
                    raise ValueError(
                        f"stage '{stage.name}': expected relaxations that learn nothing where stages change them, got "
                        f"{type(one).__name__} with parameters or buffers; use one throughout, in the router"
                    )

    def enter(self, progress: float) -> Stage:
        """The stage at ``progress``, with the model prepared for its next step."""
        stage = self.curriculum.at(progress)
        if stage is not self._entered:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(stage.trains(name))
            self._relax(stage)
            self._entered = stage
        router = self.model.router
        # A router that stands still decides as it will at evaluation, without noise: the others learn for its routes.
        router.train(any(parameter.requires_grad for parameter in router.parameters()))
        if self._own is not None:
            router.relaxation.temperature = self.curriculum.temperature(progress)
        return stage

    def settle(self) -> None:
        """Let the router decide as it does at the end of training."""
        self._relax(self.curriculum.stages[-1])
        if self._own is not None:
            self.model.router.relaxation.temperature = self.curriculum.temperature(1.0)

    def _relax(self, stage: Stage) -> None:
        if self._own is None:
            return
        router = self.model.router
        wanted = self._own if stage.relaxation is None else stage.relaxation
        if router.relaxation is not wanted:
            del router.relaxation  # a module can be replaced by a module alone
            router.relaxation = wanted
            if isinstance(wanted, nn.Module):
                wanted.train(router.training)


def require_steps(curriculum: Curriculum, num_steps: int) -> None:
    """That every stage gets a step of a training of so many.

    A stage that is passed over would pass for trained: after a last stage of the router's, every command would let a
    router decide that has learnt nothing.

    Raises:
        ValueError: some get none.
    """
    begin, idle = 0.0, []
    for stage in curriculum.stages:
        first = math.floor(begin * num_steps)  # or the next one; exactly as training asks, with its rounding
        steps = [step for step in range(max(first - 1, 0), first + 3) if step < num_steps]
        if not any(curriculum.at(step / num_steps) is stage for step in steps):
            idle.append(stage.name)
        begin = stage.until
    if idle:
        ends = ", ".join(f"{stage.name}: {stage.until:g}" for stage in curriculum.stages)
        raise ValueError(
            f"expected a step of training for every stage, got none for {', '.join(idle)}: the {num_steps} optimiser "
            f"steps of this training are too few for stages until {ends}; train longer (such as trainer.max_epochs), "
            "or change 'until' of the stages"
        )


def meet_data(curriculum: Curriculum, data: object) -> None:
    """Bring stages and data together, before the training loader is built.

    Raises:
        ValueError: they do not fit, see ``give_faults`` and ``fusion.custom_step.CustomStep``.
    """
    give_faults(curriculum, data)
    for stage in curriculum.stages:
        if hasattr(stage.step, "check_data"):
            stage.step.check_data(stage, data)


def give_faults(curriculum: Curriculum, data: object) -> None:
    """Tell the data how much of its faults acts in each stage, before its training loader is built.

    Args:
        data: with ``set_fault_stages``, as ``NuScenesDataModule``.

    Raises:
        ValueError: a stage takes a part of the faults, and the data has none, or cannot do so.
    """
    stages = [stage.fault_stage() for stage in curriculum.stages]
    changing = next((stage.name for stage in stages if stage.changes), None)
    if hasattr(data, "set_fault_stages"):
        data.set_fault_stages(stages)
    elif changing is not None:
        raise ValueError(
            f"stage '{changing}': expected a data module with set_fault_stages for a stage that names faults, got "
            f"{type(data).__name__}; leave the stage's faults at all"
        )
