"""The only place where router, units, merge, trunk and head meet."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.adaptive.allocation import SharedBudget
from fusion.adaptive.token_terms import forget_tokens, token_loss
from fusion.encoders.guide import check_scorer, checked_guide
from fusion.heads.center import CenterHead, HeadOutput
from fusion.routing.budget import RouteTable
from fusion.routing.costs import ALWAYS, Prices
from fusion.routing.dispatch import Dispatch, run_points, run_views
from fusion.routing.guiding import guide_cameras, has_scorer, unguided
from fusion.routing.plan import FULL, LITE, ExecutionTrace, RoutingPlan, fixed_plan
from fusion.routing.router import Router, glance_of
from fusion.trunk.exits import EarlyExits
from fusion.trunk.exits_rows import ExitRun
from fusion.trunk.merge import SensorBev
from fusion.trunk.trunk import BevTrunk
from fusion.units import PointBranches, ViewBranches
from sensors.rig import NUM_CAMERAS, UNITS

SENSORS = {"camera": UNITS[:NUM_CAMERAS], "lidar": ("LIDAR",), "radar": ("RADAR",)}
"""Sensor -> its units."""


@dataclass(frozen=True, eq=False)
class FusionOutput:
    """What one forward pass gives.

    Attributes:
        head: maps to decode or to learn from.
        plan: what was decided.
        trace: what really ran.
        depth_loss: mean over the computed views; None without targets or without views.
        exits: where each sample left, and in training the answers of all exits; None without early exits.
        token_loss: in training, how far token methods are from their targets; None without any that has one.
        unguided: samples of which cameras ran whose patches a learned guide (``GuideScore``) could not choose, since
            the route or a fault left the guide out: the lower patches were taken. None without such a guide.
    """

    head: HeadOutput
    plan: RoutingPlan
    trace: ExecutionTrace
    depth_loss: Float[Tensor, ""] | None
    exits: ExitRun | None = None
    token_loss: Float[Tensor, ""] | None = None
    unguided: Bool[Tensor, "b"] | None = None


class FusionModel(nn.Module):
    """Camera, LiDAR and radar to a detection head, computing per sample what the plan says and nothing else.

    Any of the three sensors may be None: the model then has no such unit, and batches may hold it or not.

    Args:
        cameras, lidar, radar: branches of the units.
        merge: ``Merge``, ``ChannelWeightedMerge`` or your own; keys name the sensors ``camera``, ``lidar``, ``radar``.
        trunk: over the merged BEV.
        head: over the trunk's output.
        router: decides where no plan is given.
        exits: early exits in the trunk; None for none.
        camera_guide: ``lidar`` or ``radar``, whose points choose the patches of a camera ViT with ``GuidedKeep``; or
            its BEV, where the cameras have a ``scorer``: then it runs before them, where the route runs it at all.

    Attributes:
        shared_budget: calibrated settings of router, exits and tokens for each budget, used at evaluation; None: the
            budget bounds the route, nobody leaves early and tokens keep their own rate.

    Raises:
        ValueError: no sensor at all, parts that lie on different grids, or exits or a guide that do not fit.
    """

    def __init__(
        self,
        cameras: ViewBranches | None,
        lidar: PointBranches | None,
        radar: PointBranches | None,
        merge: nn.Module,
        trunk: BevTrunk,
        head: CenterHead,
        router: Router,
        exits: EarlyExits | None = None,
        camera_guide: str | None = None,
    ):
        super().__init__()
        self.cameras, self.lidar, self.radar = cameras, lidar, radar
        self.merge, self.trunk, self.head, self.router, self.exits = merge, trunk, head, router, exits
        self.shared_budget: SharedBudget | None = None
        self.camera_guide = checked_guide(camera_guide, cameras)
        self._check_grids()
        if has_scorer(self.cameras):
            check_scorer(self.cameras.scorer, self.camera_guide, getattr(self, self.camera_guide), exits)
        if exits is not None:
            self._check_groups(exits)
            exits.attach(trunk, head, merge.channels, merge.grid.shape)
        self.routes = RouteTable(self._priced(), router.floor)
        router.open_by_price(self.routes.prices.shares())
        exists = self.routes.prices.exists()
        self.register_buffer("has_unit", exists[:, LITE] | exists[:, FULL], persistent=False)

    def forward(
        self,
        batch: Batch,
        budget: float | Tensor = 1.0,
        plan: RoutingPlan | None = None,
        execution: str = "sparse",
        is_capped: bool | None = None,
    ) -> FusionOutput:
        """Detection maps of every sample.

        Args:
            batch: parts of sensors that the model lacks are not looked at.
            budget: share of the full cost that the router may spend, one or one per sample, from ``min_budget`` to 1.
            plan: decided elsewhere; the router then does not run, and ``budget`` is not looked at.
            execution: ``sparse`` or ``masked``.
            is_capped: whether sensors give no more points than their prices count (``PointBranches.within_price``), so
                that no sample costs more than its route is priced at; None: at evaluation, where no plan is given, for
                the samples whose budget is below 1 (a budget of 1 asks for no bound).
        """
        available = self.available(batch)
        decided = plan is not None
        asked = None if decided or self.training else budget
        if self.shared_budget is not None and not self.training:
            budget = self.shared_budget.set(self, None if decided else budget, batch.tokens)
            if budget is None and not decided:
                plan, decided = self.full_plan(batch), True
        plan = plan if decided else self.router(glance_of(batch, available), self.routes, budget)
        capped = _capped(is_capped, asked, len(batch))
        dispatch = Dispatch.of(plan, available, self.routes.prices.exists(), execution, capped)
        return self.execute(batch, dispatch, has_router=not decided)

    def execute(
        self, batch: Batch, dispatch: Dispatch, has_router: bool = False, rest: Callable[[], Batch] | None = None
    ) -> FusionOutput:
        """Runs a plan; exits and tokens as they are set.

        Args:
            has_router: whether the router has run and is part of the cost.
            rest: gives the batch with all sensors, where ``batch`` has those of the exits' first group alone; called
                only if a sample does not leave at the exit over these.
        """
        plan, own = dispatch.plan, set() if has_router else {"router"}
        forget_tokens(self)
        if self.exits is not None:
            output, depth_loss, run, lost = self._run_with_exits(batch, dispatch, rest)
            self._record_always(dispatch.trace, without={*own, "merge", "trunk", "head", "exits"})
            return FusionOutput(output, plan, dispatch.trace, depth_loss, run, token_loss(self), lost)

        parts, depth_loss = self._run_units(batch, dispatch)  # {sensor: b c ny nx}
        merged = self.merge(parts, len(batch))  # b c ny nx
        output = self.head(self.trunk(merged))  # b d my mx

        self._record_always(dispatch.trace, without=own)
        lost = unguided(self.cameras, self.camera_guide, dispatch)
        return FusionOutput(output, plan, dispatch.trace, depth_loss, token_loss=token_loss(self), unguided=lost)

    def _run_with_exits(
        self, batch: Batch, dispatch: Dispatch, rest: Callable[[], Batch] | None
    ) -> tuple[HeadOutput, Float[Tensor, ""] | None, ExitRun, Bool[Tensor, "b"] | None]:
        """As without, but samples may leave: before the other sensors run, and after each stage of the trunk."""
        exits = self.exits
        walk = exits.start(dispatch.trace, dispatch.plan.choice.device, dispatch.is_masked)
        first = exits.first_group if exits.runs_exit(0, walk) else ()
        lost = unguided(self.cameras, self.camera_guide, dispatch)
        parts: dict[str, SensorBev] = {}
        depth_loss = None
        if first:
            parts, depth_loss = self._run_units(batch, dispatch, first)
            merged = self.merge(parts, len(batch))
            walk.record("merge", self.prices().always["merge"])
            present = [part.present for part in parts.values()]
            seen = torch.stack(present).any(dim=0) if present else torch.zeros_like(walk.rows, dtype=torch.bool)
            if exits.after_group(merged, seen, walk) is not None:
                dispatch = _only(dispatch, walk.rows)
                if "camera" not in first:  # no camera of those that left has run
                    lost = unguided(self.cameras, self.camera_guide, dispatch)
        batch = rest() if rest is not None and len(walk.rows) else batch
        others, camera_loss = self._run_units(batch, dispatch, [name for name in SENSORS if name not in first], parts)
        if first and not others:  # nothing has come to what is merged already
            merged = merged.index_select(0, walk.rows) if len(walk.rows) < len(batch) else merged
        else:
            parts = {**parts, **others}
            merged = torch.empty(0, self.merge.channels, *self.merge.grid.shape)
            if len(walk.rows) < len(batch):
                parts = {name: part.select(walk.rows) for name, part in parts.items()}
            if len(walk.rows):
                merged = self.merge(parts, len(walk.rows))
                walk.record("merge", self.prices().always["merge"])
        output, run = exits(merged, self.trunk, self.head, walk)
        return output, depth_loss if camera_loss is None else camera_loss, run, lost

    def _run_units(
        self,
        batch: Batch,
        dispatch: Dispatch,
        only: Collection[str] = tuple(SENSORS),
        before: dict[str, SensorBev] | None = None,
    ) -> tuple[dict[str, SensorBev], Tensor | None]:
        """BEVs of some sensors, and the cameras' depth loss; ``before`` are those of sensors that have run already."""
        parts, depth_loss = {}, None
        # A guide whose BEV chooses the cameras' patches runs first; without one the order is that of SENSORS.
        for name in sorted(SENSORS, key=lambda name: name == "camera") if has_scorer(self.cameras) else SENSORS:
            branches, given = (self.cameras if name == "camera" else getattr(self, name)), getattr(batch, name)
            if name not in only or branches is None or given is None:
                continue
            if name == "camera":
                guide_cameras(self.cameras, self.camera_guide, batch, dispatch, {**(before or {}), **parts})
                lidar = batch.lidar if self.cameras.depth_from_lidar else None
                parts[name], depth_loss = run_views(self.cameras, batch.camera, dispatch, lidar)
                self.cameras.guide_bev = None  # it hangs on a graph
            else:
                parts[name] = run_points(name.upper(), branches, given, dispatch)
            if parts[name] is None:
                del parts[name]
        return {name: parts[name] for name in SENSORS if name in parts}, depth_loss

    def available(self, batch: Batch) -> Bool[Tensor, "b u"]:
        """Units that are present in the batch and that the model has."""
        views, lidar, radar = batch.camera is not None, batch.lidar is not None, batch.radar is not None
        in_batch = torch.tensor([*[views] * NUM_CAMERAS, lidar, radar], device=batch.unit_present.device)
        return batch.unit_present & self.has_unit & in_batch

    def full_plan(self, batch: Batch) -> RoutingPlan:
        """Everything available at its full branch."""
        available = self.available(batch)
        choice = torch.full(available.shape, FULL, dtype=torch.int64, device=available.device)
        return self.plan_of(choice, available)

    def random_plan(
        self, batch: Batch, budget: float | Tensor = 1.0, generator: torch.Generator | None = None
    ) -> RoutingPlan:
        """Branches drawn uniformly among the available ones, kept within the budget by the same cap as the router's."""
        available = self.available(batch)
        return self.plan_of(self.routes.random(available, budget, generator), available)

    def plan_of(self, choice: Tensor, available: Tensor) -> RoutingPlan:
        """A plan of given branches, with its cost."""
        plan = fixed_plan(choice, available)
        return fixed_plan(choice, available, self.prices().cost_of(plan.choice).float())

    def prices(self) -> Prices:
        """GFLOPs of every unit, branch and always-on part."""
        return self.routes.prices

    @property
    def min_budget(self) -> float:
        """b_min: the always-on share and the cheapest route that the floor allows."""
        return self.routes.min_budget

    def _priced(self) -> Prices:
        views, lidar, radar = ({} if part is None else part.gflops() for part in (self.cameras, self.lidar, self.radar))
        units = (*[views] * NUM_CAMERAS, lidar, radar)
        if not any(units):
            raise ValueError("expected at least one sensor, got cameras, lidar and radar all None; configure one")
        always = {
            "router": self.router.gflops(),
            "merge": self.merge.gflops(),
            "trunk": self.trunk.gflops(self.merge.grid.shape),
            "head": self.head.gflops(),
        }
        if self.exits is not None:
            # The most that a sample can cost: it passes every early head and still goes all the way.
            always["exits"] = self.exits.gflops()
            always["head"] = self.exits.last_gflops["head"]
            if self.exits.first_group:
                always["exits"] += always["merge"]
        search = RouteTable(Prices(always, units)).gflops
        return Prices({**always, "router": always["router"] + search}, units)

    def _record_always(self, trace: ExecutionTrace, without: set[str]) -> None:
        everybody = tuple(range(trace.num_samples))
        runs_trunk = "trunk" not in without  # else it may have run for nobody and has nothing to say
        saved = getattr(self.trunk, "saved_gflops", lambda: None)() if runs_trunk else None
        for name, gflops in self.prices().always.items():
            if name == "trunk" and saved is not None:
                for row in everybody:
                    trace.add(ALWAYS, name, (row,), gflops - saved[row])
            elif name not in without:
                trace.add(ALWAYS, name, everybody, gflops)

    def _check_groups(self, exits: EarlyExits) -> None:
        have = [
            name for name, part in zip(SENSORS, (self.cameras, self.lidar, self.radar), strict=True) if part is not None
        ]
        first = exits.first_group
        if not set(first) <= set(have) or (first and len(set(first)) >= len(have)):
            raise ValueError(
                f"expected first_group to be some, not all, of the model's sensors {have}, got {list(first)}; change it"
            )

    def _check_grids(self) -> None:
        merged = self.merge.grid
        found = {
            "lift": None if self.cameras is None else self.cameras.lift.grid,
            "lidar": None if self.lidar is None else self.lidar.full.out_grid,
            "radar": None if self.radar is None else self.radar.full.out_grid,
        }
        for name, grid in found.items():
            if grid is not None and not grid.is_same(merged):
                raise ValueError(
                    f"expected the {name} to give BEVs on the grid of the merge, {merged}, got {grid}; change one"
                )


def _only(dispatch: Dispatch, rows: Tensor) -> Dispatch:
    """Without the samples that have left."""
    stays = torch.zeros(len(dispatch.runs), dtype=torch.bool).index_fill(0, rows.cpu(), True)[:, None, None]
    return replace(dispatch, runs=dispatch.runs & stays, chosen=dispatch.chosen & stays)


def _capped(is_capped: bool | None, asked: float | Tensor | None, num_samples: int) -> Bool[Tensor, "b"]:
    """Samples whose points are thinned to what prices count; ``asked`` is the budget, where one decides."""
    if is_capped is not None or asked is None:
        return torch.full((num_samples,), bool(is_capped))
    return (torch.as_tensor(asked, dtype=torch.float64).cpu().reshape(-1) < 1).expand(num_samples)
