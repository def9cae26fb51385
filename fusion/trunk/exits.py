"""Early exits: detection heads after the stages of the trunk, at which samples leave the batch.

Every exit has a head of the same type over the same grid as the model's own head, which is the last exit; targets are
made once for all. At evaluation the samples that leave are gone: what comes after runs on the others alone.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.heads.center import NUM_CLASSES, CenterHead, HeadOutput
from fusion.routing.plan import ExecutionTrace
from fusion.trunk.exits_combine import Boosted, Combination
from fusion.trunk.exits_fitted import check_known
from fusion.trunk.exits_head import AFTER_GROUP, ExitHead, check_places, scaled_gradient, stage_maps
from fusion.trunk.exits_peaks import find_peaks
from fusion.trunk.exits_policies import ExitPolicy, MaxProb
from fusion.trunk.exits_rows import ExitRun, Walk, picked


class EarlyExits(nn.Module):
    """The exits of a model, and who leaves at them.

    Args:
        exits: in the order of their places. The model's own head is the last exit and not among them.
        policy: gives scores; see ``exits_policies``.
        thresholds: of each exit: samples whose score is at least this leave. None: infinity everywhere, nobody leaves.
        combine: what an exit gives out, see ``exits_combine``; None for its own maps.
        detach: whether exits leave the trunk alone: no gradient flows from their heads into it.
        equilibrium: gradient equilibrium (IMTA, Li et al., ICCV 2019): the trunk's gradients keep their variance
            however many exits there are. Not together with ``detach``.
        cascade: whether each head also sees the heatmap of the exit before (ZTW); starts at no influence.
        first_group: sensors (camera, lidar, radar) that run before an exit at AFTER_GROUP.
        num_peaks: how many peaks of a sample a policy looks at.

    Attributes:
        temperatures: of each exit's logits for the policy; 1 until calibrated.
        observing: at evaluation, run every exit for every sample and let nobody leave before the end: for calibration.
        resting: in training, do not run the early exits: nothing learns from them now. Not where answers are combined.

    Raises:
        ValueError: no exits, places not in order, thresholds not one per exit, or settings that exclude each other.
    """

    def __init__(
        self,
        exits: Sequence[ExitHead],
        policy: ExitPolicy | None = None,
        thresholds: Sequence[float | int] | None = None,
        combine: Combination | None = None,
        detach: bool = False,
        equilibrium: bool = False,
        cascade: bool = False,
        first_group: Sequence[str] = (),
        num_peaks: int = 32,
    ):
        super().__init__()
        places = [one.after for one in exits]
        check_places(places)
        if (AFTER_GROUP in places) != bool(first_group):
            raise ValueError(
                f"expected first_group with an exit at {AFTER_GROUP}, got exits after {places} and first_group "
                f"{list(first_group)}; give both or none"
            )
        if detach and equilibrium:
            raise ValueError("expected detach or equilibrium, got both: a detached head sends no gradient to balance")
        self.heads = nn.ModuleList(exits)
        self.policy = policy if policy is not None else MaxProb()
        self.combine, self.detach, self.equilibrium, self.cascade = combine, detach, equilibrium, cascade
        self.first_group, self.num_peaks = tuple(first_group), num_peaks
        self.temperatures, self.observing, self.resting = (1.0,) * len(exits), False, False
        self.set_thresholds([math.inf] * len(exits) if thresholds is None else thresholds)

    def set_thresholds(self, thresholds: Sequence[float | int], temperatures: Sequence[float] | None = None) -> None:
        """Thresholds, and temperatures that they were calibrated with, one per exit."""
        for name, values in (("threshold", thresholds), ("temperature", temperatures)):
            if values is not None and len(values) != len(self.heads):
                raise ValueError(f"expected a {name} for each of {len(self.heads)} exits, got {list(values)}; add some")
        check_known(self.policy, thresholds)
        self.thresholds = tuple(float(value) for value in thresholds)
        if temperatures is not None:
            self.temperatures = tuple(float(value) for value in temperatures)

    def attach(self, trunk: nn.Module, head: CenterHead, in_channels: int, shape: tuple[int, int]) -> None:
        """Check that the exits fit a model, and price its steps.

        Args:
            trunk: with ``stages``, ``neck`` and ``out_channels`` as BevTrunk.
            head: the model's own.
            in_channels, shape: of the merged BEV.

        Raises:
            ValueError: an exit after a stage that is not there or is the last, of other channels, on another grid or
                with other class groups.
        """
        maps, self.stage_gflops = stage_maps(trunk, in_channels, shape)
        for one in self.heads:
            if one.after >= len(trunk.stages) - 1:
                raise ValueError(
                    f"expected exits after stages 0 to {len(trunk.stages) - 2} of {len(trunk.stages)} (after "
                    f"the last stands the model's own head), got {one.after}; change the exits or the trunk"
                )
            if one.in_channels != maps[one.after][0]:
                raise ValueError(
                    f"expected the exit after stage {one.after} to take the {maps[one.after][0]} channels of "
                    f"that stage, got in_channels {one.in_channels}; change it"
                )
            if not one.head.grid.is_same(head.grid):
                raise ValueError(f"expected exits on the grid of the model's head, {head.grid}, got {one.head.grid}")
            if one.head.group_of_class != head.group_of_class:
                raise ValueError(
                    f"expected exits with the class_groups of the model's head, {len(head.heatmaps)} of them, got "
                    f"{len(one.head.heatmaps)} or others after stage {one.after}; give all heads the same"
                )
        self.exit_gflops = [one.gflops(maps[one.after][1]) for one in self.heads]
        self.last_gflops = {"trunk": trunk.gflops(shape) - sum(self.stage_gflops), "head": head.gflops()}
        if isinstance(self.combine, Boosted):
            self.combine.prepare([*(one.head for one in self.heads), head])
        if self.cascade:
            widths = [*(one.channels for one in self.heads[1:]), trunk.out_channels]
            self.cascades = nn.ModuleList(nn.Conv2d(NUM_CLASSES, width, 1, bias=False) for width in widths)
            cells = head.grid.shape[0] * head.grid.shape[1]
            for number, conv in enumerate(self.cascades):
                nn.init.zeros_(conv.weight)
                extra = 2e-9 * conv.weight.numel() * cells
                if number + 1 < len(self.heads):
                    self.exit_gflops[number + 1] += extra
                else:
                    self.last_gflops["head"] += extra

    def gflops(self) -> float:
        """What the exits add to one sample that goes all the way: every early head."""
        return sum(self.exit_gflops)

    @property
    def rests(self) -> bool:
        """Whether early exits are left out of this pass."""
        return self.resting and self.training and self.combine is None and not self.cascade

    def runs_exit(self, number: int, walk: Walk) -> bool:
        """Whether an early exit is computed in this pass."""
        looks_back = self.policy.looks_back or self.combine is not None or self.cascade
        return not self.rests and (walk.all_stay or looks_back or self.thresholds[number] < math.inf)

    @property
    def may_leave_group(self) -> bool:
        """Whether samples may leave, at evaluation, before the sensors that are not of the first group have run."""
        return bool(self.first_group) and self.thresholds[0] < math.inf and not self.observing

    def start(self, trace: ExecutionTrace, device: torch.device, masked: bool) -> Walk:
        """Begin with a batch. In training and in masked execution nobody leaves before the end."""
        return Walk.start(trace, len(self.heads), device, self.training or masked or self.observing)

    def after_group(
        self, merged: Float[Tensor, "b c ny nx"], seen: Bool[Tensor, "b"], walk: Walk
    ) -> Int64[Tensor, "s"] | None:
        """The exit over the first group of sensors.

        Args:
            seen: samples of which a sensor of the group has run. The others stay: their exit knows nothing.

        Returns:
            As ``Walk.leave``.
        """
        return self._visit(0, merged, walk, seen)

    def forward(
        self, bev: Float[Tensor, "r c ny nx"], trunk: nn.Module, head: CenterHead, walk: Walk
    ) -> tuple[HeadOutput, ExitRun]:
        """The trunk with its exits; answers of all samples of the batch in order.

        Args:
            bev: of the samples that are still there.
        """
        if self.first_group and not walk.said:  # the exit over these was left out: the others keep their numbers
            walk.skip()
        places = {one.after: number for number, one in enumerate(self.heads)}
        levels: list[Tensor] = []
        for place, stage in enumerate(trunk.stages):
            if not len(walk.rows):
                break
            bev = stage(bev)
            levels.append(bev)
            walk.record("trunk", self.stage_gflops[place])
            if place in places:
                bev, kept = self._passed(places[place], bev, walk)
                levels[-1] = bev
                levels = levels if kept is None else [level.index_select(0, kept) for level in levels]
                bev = levels[-1]
        last = self._last(levels, trunk, head, walk) if len(walk.rows) else None
        output, run = walk.finish(last, len(self.heads))
        if walk.all_stay and not self.training:
            exit_of = self._first_accepting(walk.scores)
            return picked(run.outputs, exit_of), ExitRun(exit_of, run.scores, run.outputs)
        return output, run

    def _passed(self, number: int, bev: Tensor, walk: Walk) -> tuple[Tensor, Tensor | None]:
        """The map as the trunk goes on with it, and who stays."""
        if not self.equilibrium:
            return bev, self._visit(number, bev, walk)
        # Exits over the first group of sensors read another map and do not count here.
        left = len(self.heads) - number + 1
        shared = scaled_gradient(bev, 1 / left)
        kept = self._visit(number, shared, walk)
        return scaled_gradient(shared, left - 1), kept

    def _visit(self, number: int, bev: Tensor, walk: Walk, may_leave: Tensor | None = None) -> Tensor | None:
        """Run one exit where anybody needs it; who stays."""
        if not self.runs_exit(number, walk):
            walk.skip()
            return None
        exit_head = self.heads[number]
        features = exit_head.features(bev.detach() if self.detach else bev)
        output = exit_head.head(self._cascaded(features, number, walk))
        walk.record("exits", self.exit_gflops[number])
        answer = self._said(output, walk)
        if self.training:
            return None
        walk.history.append(find_peaks(answer, exit_head.head.grid, self.num_peaks, self.temperatures[number]))
        score = self.policy(walk.history).float()
        if may_leave is not None:
            score = torch.where(may_leave[walk.rows], score, torch.nan)
        walk.scores[walk.rows, number] = score
        threshold = self.thresholds[number]
        return None if walk.all_stay or threshold == math.inf else walk.leave(score >= threshold, answer)

    def _last(self, levels: list[Tensor], trunk: nn.Module, head: CenterHead, walk: Walk) -> HeadOutput:
        output = head(self._cascaded(trunk.neck(levels), len(self.heads), walk))
        saved = getattr(trunk, "saved_gflops", lambda: None)()
        for part, gflops in self.last_gflops.items():
            walk.record(part, gflops, saved if part == "trunk" else None)
        return self._said(output, walk)

    def _said(self, output: HeadOutput, walk: Walk) -> HeadOutput:
        walk.said.append(output)
        answer = output if self.combine is None else self.combine(walk.said)
        if walk.all_stay:
            walk.answers.append(answer)
        return answer

    def _cascaded(self, features: Tensor, number: int, walk: Walk) -> Tensor:
        if not self.cascade or number == 0:
            return features
        return features + self.cascades[number - 1](walk.said[-1].heatmap.detach().sigmoid().to(features.dtype))

    def _first_accepting(self, scores: Float[Tensor, "b e"]) -> Int64[Tensor, "b"]:
        thresholds = torch.tensor(self.thresholds, device=scores.device)
        accepts = (scores >= thresholds) & (thresholds < math.inf)
        always = torch.ones_like(accepts[:, :1])
        return torch.cat([accepts, always], dim=1).int().argmax(dim=1)
