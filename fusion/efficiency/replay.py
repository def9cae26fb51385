"""Many routes of one sample for the price of its encoders once.

Every branch of every available unit is encoded once; a route then costs only the lift of its views, the merge, the
trunk and the head. The numbers are those of the plain path up to the order of floating-point sums.

Models with early exits and kept tokens are replayed ``at_rest``: the route alone decides, nobody leaves early, and
tokens take part at the rate they learnt.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from datamodules.batch import Batch
from fusion.adaptive.allocation import tokens_of, views_of
from fusion.encoders.guide import guide_points
from fusion.encoders.lift import ViewRows
from fusion.heads.center import HeadOutput
from fusion.model import FusionModel
from fusion.routing.costs import ALWAYS
from fusion.routing.plan import NUM_BRANCHES, SKIP, ExecutionTrace
from fusion.trunk.exits import EarlyExits
from fusion.trunk.merge import SensorBev
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS

POINT_UNITS = {"lidar": LIDAR_UNIT, "radar": RADAR_UNIT}
_CHUNK = 16


def require_replayable(model: FusionModel) -> None:
    """That routes can be replayed.

    Raises:
        ValueError: an exit over the first sensors that runs even where nobody may leave, or a learned camera guide.
    """
    exits = model.exits
    if exits is not None and exits.first_group and _looks_back(exits):
        raise ValueError(
            "expected exits that can be left out to replay routes of, got a first_group together with combine, "
            "cascade or a policy that looks back; use dynfusion evaluate at each budget"
        )
    if getattr(model.cameras, "scorer", None) is not None:
        raise ValueError(
            "expected cameras that no other sensor changes to replay routes, got a scorer, whose patches depend on "
            "whether the guide runs; use dynfusion evaluate at each budget"
        )


def _looks_back(exits: EarlyExits) -> bool:
    """Whether exits run although nobody may leave at them."""
    return exits.policy.looks_back or exits.combine is not None or exits.cascade


@contextmanager
def at_rest(model: FusionModel) -> Iterator[FusionModel]:
    """While it is open, the route alone decides: no calibrated settings, nobody leaves early, tokens at their own rate.

    The model's settings come back at the end.
    """
    exits, tokens, views, shared = model.exits, tokens_of(model), views_of(model), model.shared_budget
    thresholds = None if exits is None else exits.thresholds
    rate = None if tokens is None else (tokens.threshold, tokens.most)
    view_rate = None if views is None else views.rate
    try:
        model.shared_budget = None
        if exits is not None:
            exits.set_thresholds([math.inf] * len(exits.heads))
        if tokens is not None:
            tokens.set_rate()
        if views is not None:
            views.set_rate(1.0)
        yield model
    finally:
        model.shared_budget = shared
        if exits is not None:
            exits.set_thresholds(thresholds)
        if tokens is not None:
            tokens.set_rate(*rate)
        if views is not None:
            views.set_rate(view_rate)


@dataclass(frozen=True, eq=False)
class ReplayedRoutes:
    """Attributes:
    head: maps, one row per route.
    gflops: executed by each route, as the trace of the plain path counts it; without the router.
    """

    head: HeadOutput
    gflops: Float64[Tensor, "r"]


@dataclass(frozen=True, eq=False)
class EncodedSample:
    """One sample with everything encoded.

    Attributes:
        model: whose merge, trunk and head finish the routes.
        views: of each camera branch, a row for every view (rows of absent views hold nothing and are never taken).
        bevs: (unit, branch) -> the encoder's BEV of this sample.
        unit_gflops: executed GFLOPs of each branch for this sample's points; 0 for SKIP and what cannot run.
    """

    model: FusionModel
    views: dict[int, ViewRows]
    bevs: dict[tuple[int, int], Float[Tensor, "1 _ _ _"]]
    unit_gflops: Float64[Tensor, "u k"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusionModel, batch: Batch) -> "EncodedSample":
        """Encodes a batch of one sample, in evaluation mode.

        Raises:
            ValueError: more or fewer samples than one, a model that cannot be replayed, or one that is not at rest.
        """
        require_replayable(model)
        if model.exits is not None and min(model.exits.thresholds) < math.inf:
            raise ValueError(
                "expected exits that nobody leaves at to replay routes, got thresholds; use at_rest(model)"
            )
        if len(batch) != 1:
            raise ValueError(f"expected a batch of one sample to replay, got {len(batch)}")
        available = model.available(batch)[0].cpu()
        gflops = torch.zeros(len(UNITS), NUM_BRANCHES, dtype=torch.float64)
        views, bevs = {}, {}
        if model.cameras is not None and batch.camera is not None and bool(available[:NUM_CAMERAS].any()):
            device = batch.camera.images.device
            everything = torch.arange(NUM_CAMERAS, device=device)
            if model.camera_guide is not None:
                model.cameras.guide = guide_points(batch, model.camera_guide)
            depths = batch.lidar if model.cameras.depth_from_lidar and bool(available[LIDAR_UNIT]) else None
            depths = None if depths is None else model.cameras.within_price(depths)
            for branch in model.cameras.sizes_px:
                gates = torch.ones(NUM_CAMERAS, device=device)
                views[branch] = model.cameras.rows(branch, batch.camera, everything, gates, depths)
                saved = getattr(model.cameras.encoder, "saved_gflops", lambda: None)()
                price = model.cameras.gflops_of[branch] - (0.0 if saved is None else saved)
                gflops[:NUM_CAMERAS, branch] = price * available[:NUM_CAMERAS].double()
        for name, unit in POINT_UNITS.items():
            branches, points = getattr(model, name), getattr(batch, name)
            if branches is None or points is None or not available[unit]:
                continue
            for branch, encoder in branches.encoders().items():
                given = branches.within_price(branch, branches.given(branch, points))  # as where a budget decides
                bevs[unit, branch] = encoder(given)
                saved = getattr(encoder, "saved_gflops", lambda: None)()
                less = 0.0 if saved is None else float(saved[0])
                gflops[unit, branch] = branches.gflops_of(branch, len(given.points)) - less
        return cls(model, views, bevs, gflops)

    @torch.no_grad()
    def run(self, choice: Int64[Tensor, "r u"]) -> ReplayedRoutes:
        """Every route to its end.

        Args:
            choice: SKIP where a unit is absent.
        """
        heads, always = zip(*(self._run(part) for part in choice.split(_CHUNK)), strict=True)
        columns = {f.name: [getattr(one, f.name) for one in heads] for f in fields(HeadOutput)}
        maps = {name: torch.cat(parts) for name, parts in columns.items() if isinstance(parts[0], Tensor)}
        taken = self.unit_gflops.expand(len(choice), -1, -1).gather(-1, choice.cpu()[..., None]).sum(dim=(1, 2))
        return ReplayedRoutes(replace(heads[0], **maps), taken + torch.cat(always))

    def _run(self, choice: Int64[Tensor, "r u"]) -> tuple[HeadOutput, Float64[Tensor, "r"]]:
        """Maps, and GFLOPs of what is always on."""
        parts = {}
        cameras = self._cameras(choice[:, :NUM_CAMERAS], choice[:, LIDAR_UNIT] != SKIP)
        if cameras is not None:
            parts["camera"] = cameras
        for name, unit in POINT_UNITS.items():
            part = self._points(unit, choice[:, unit])
            if part is not None:
                parts[name] = part
        return self._finished(self.model.merge(parts, len(choice)))

    def _finished(self, merged: Float[Tensor, "r c ny nx"]) -> tuple[HeadOutput, Float64[Tensor, "r"]]:
        """Trunk and head, in the way of the plain path."""
        model, trace = self.model, ExecutionTrace(len(merged))
        everybody, always = tuple(range(len(merged))), model.prices().always
        trace.add(ALWAYS, "merge", everybody, always["merge"])
        if model.exits is not None:
            walk = model.exits.start(trace, merged.device, masked=False)
            head, _ = model.exits(merged, model.trunk, model.head, walk)
        else:
            head = model.head(model.trunk(merged))
            saved = getattr(model.trunk, "saved_gflops", lambda: None)()
            for row, less in enumerate(saved or [0.0] * len(merged)):
                trace.add(ALWAYS, "trunk", (row,), always["trunk"] - less)
            trace.add(ALWAYS, "head", everybody, always["head"])
        return head, torch.tensor(trace.gflops(), dtype=torch.float64)

    def _cameras(self, choice: Int64[Tensor, "r 6"], with_lidar: Bool[Tensor, "r"]) -> SensorBev | None:
        """One lift for all different sets of views among the routes; the LiDAR gives depths only where it runs."""
        if not self.views or bool((choice == SKIP).all()):
            return None
        sets, which = torch.unique(torch.cat([choice, with_lidar[:, None].long()], dim=1), dim=0, return_inverse=True)
        device = next(iter(self.views.values())).sample.device
        rows = []
        for branch, views in self.views.items():
            number, view = (index.to(device) for index in torch.nonzero(sets[:, :NUM_CAMERAS] == branch, as_tuple=True))
            chosen = replace(views.chosen(view), sample=number)
            if chosen.measured_m is not None:
                runs = sets[:, NUM_CAMERAS].to(device)[number, None, None]
                chosen = replace(chosen, measured_m=chosen.measured_m * runs)
            rows.append(chosen)
        bev, covered = self.model.cameras.lift(rows, len(sets))
        which = which.to(device)
        present = (choice != SKIP).any(dim=1).to(device)
        return SensorBev(bev[which], present, torch.ones(len(choice), device=device), covered[which])

    def _points(self, unit: int, choice: Int64[Tensor, "r"]) -> SensorBev | None:
        taken = {
            branch: bev for (of, branch), bev in self.bevs.items() if of == unit and bool((choice == branch).any())
        }
        if not taken:
            return None
        like = next(iter(taken.values()))
        bev = like.new_zeros(len(choice), *like.shape[1:])
        for branch, encoded in taken.items():
            bev[(choice == branch).to(like.device)] = encoded[0]
        present = (choice != SKIP).to(like.device)
        return SensorBev(bev, present, torch.ones(len(choice), device=like.device))
