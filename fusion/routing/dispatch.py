"""Running exactly the chosen rows of exactly the chosen units.

Two executions of one model. ``sparse`` runs each branch of each unit once, on the rows that chose it: the cost follows
the choice at every batch size, and a branch that nobody chose is not called. ``masked`` runs every branch of every
present unit and lets only the chosen one through: equal outputs, nothing saved, a gradient for what was not chosen.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from datamodules.batch import CameraBatch, PointBatch
from fusion.encoders.lift import Lift, ViewRows
from fusion.encoders.measured_depth import newest_sweep
from fusion.ops.thinning import num_points_of
from fusion.routing.plan import BRANCHES, DEPTH, NUM_BRANCHES, SKIP, ExecutionTrace, RoutingPlan
from fusion.trunk.merge import SensorBev
from fusion.units import PointBranches, ViewBranches
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, UNITS

EXECUTIONS = ("sparse", "masked")


@dataclass(frozen=True, eq=False)
class Dispatch:
    """A plan made ready to run.

    Attributes:
        plan: what was chosen.
        chosen: the same, one-hot, on the host.
        runs: what is computed, on the host; the same as ``chosen`` in sparse execution. Never SKIP.
        is_masked: whether branches that were not chosen are computed too.
        trace: filled in as things run.
        capped: samples that a bound holds for, on the host: no sensor gives more points of them than its price counts.
    """

    plan: RoutingPlan
    chosen: Bool[Tensor, "b u k"]
    runs: Bool[Tensor, "b u k"]
    is_masked: bool
    trace: ExecutionTrace
    capped: Bool[Tensor, "b"]

    @classmethod
    def of(
        cls,
        plan: RoutingPlan,
        available: Bool[Tensor, "b u"],
        exists: Bool[Tensor, "u k"],
        execution: str,
        capped: Bool[Tensor, "b"] | None = None,
    ) -> "Dispatch":
        """Copies the choice to the host: the one time a decision makes the device wait.

        Args:
            available: units that are present and that the model has.
            exists: branches that the model has, on the host.
            capped: see the attribute; None for no sample.

        Raises:
            ValueError: an unknown execution, or a plan that runs what is not there.
        """
        if execution not in EXECUTIONS:
            raise ValueError(f"expected execution to be one of {EXECUTIONS}, got {execution!r}")
        if plan.choice.shape != available.shape:
            raise ValueError(
                f"expected a plan for {tuple(available.shape)} samples and units, got {tuple(plan.choice.shape)}; "
                "make it from the same batch"
            )
        choice, available = torch.stack([plan.choice, available.long()]).cpu()
        possible = exists & available.bool()[..., None]
        possible[..., SKIP] = True
        chosen = torch.nn.functional.one_hot(choice, NUM_BRANCHES).bool()
        if (chosen & ~possible).any():
            sample, unit, branch = torch.nonzero(chosen & ~possible)[0].tolist()
            raise ValueError(
                f"expected a plan that runs only what is there, got {UNITS[unit]} at {BRANCHES[branch]} for sample "
                f"{sample}, where the sensor is absent or the model has no such branch; make plans with fixed_plan"
            )
        runs = (possible if execution == "masked" else chosen).clone()
        runs[..., SKIP] = False
        capped = torch.zeros(len(choice), dtype=torch.bool) if capped is None else capped
        return cls(plan, chosen, runs, execution == "masked", ExecutionTrace(len(choice)), capped)

    def chose(self, units: int | slice) -> Bool[Tensor, "b"]:
        """Samples whose route runs any of these units; not those that only masked execution computes."""
        return self.chosen[:, units, SKIP + 1 :].flatten(1).any(dim=1)

    def points_of(self, unit: int, points: PointBatch) -> PointBatch:
        """Points of the samples whose route runs a unit."""
        chose = self.chose(unit).to(points.sample.device)
        return points if chose.all() else points.where(chose[points.sample])

    @property
    def num_views(self) -> int:
        """How many (sample, view) rows run, over all branches."""
        return int(self.runs[:, :NUM_CAMERAS].sum())


def run_points(name: str, branches: PointBranches, points: PointBatch, dispatch: Dispatch) -> SensorBev | None:
    """The BEV of the LiDAR or the radar set; None where no sample runs it."""
    unit = UNITS.index(name)
    runs, num_samples = dispatch.runs[:, unit], len(dispatch.runs)
    device, bev = points.points.device, None
    for branch, encoder in branches.encoders().items():
        rows = torch.nonzero(runs[:, branch])[:, 0]
        if not len(rows):
            continue
        given = branches.given(branch, points if len(rows) == num_samples else points.rows(rows.to(device)))
        given = _within_price(dispatch, name, branch, rows, given, branches)
        features = encoder(given)
        _record_points(dispatch, name, branch, rows, given, branches)
        if dispatch.is_masked:
            share = _masked_shares(dispatch.plan.gates[:, unit], max(branches.encoders()))[rows.to(device), branch]
            features = features * share[:, None, None, None].to(features.dtype)
        if bev is None:
            bev = features.new_zeros(num_samples, *features.shape[1:])
        bev = bev.index_add(0, rows.to(device), features.to(bev.dtype))
    if bev is None:
        return None
    present = runs.any(dim=-1).to(device)
    # Masked: everything computed is "present", and a weight of 0 puts the missing token where it was not chosen.
    weight = 1 - dispatch.plan.gates[:, unit, SKIP] if dispatch.is_masked else dispatch.plan.weight[:, unit]
    return SensorBev(bev, present, weight)


def run_views(
    branches: ViewBranches, camera: CameraBatch, dispatch: Dispatch, lidar: PointBatch | None = None
) -> tuple[SensorBev | None, Float[Tensor, ""] | None]:
    """The joint BEV of all views that run (None where none does), and their depth loss where there are targets.

    Args:
        lidar: where it was chosen, its newest sweep gives depths; None where it is not to.
    """
    device, num_samples = camera.images.device, len(dispatch.runs)
    if lidar is not None:
        lidar = _depths_within_price(dispatch, dispatch.points_of(LIDAR_UNIT, lidar), branches)
    views, views_chosen, losses = [], [], []
    for branch in branches.sizes_px:
        rows = torch.nonzero(dispatch.runs[:, :NUM_CAMERAS, branch].flatten())[:, 0]
        if not len(rows):
            continue
        gates = dispatch.plan.gates[:, :NUM_CAMERAS, branch].flatten()
        views.append(branches.rows(branch, camera, rows.to(device), gates[rows.to(device)], lidar))
        views_chosen.append(dispatch.chosen[:, :NUM_CAMERAS, branch].flatten()[rows].to(device))
        if camera.depth_m is not None:
            depth_m = camera.depth_m.flatten(0, 1)[rows.to(device)]
            losses.append(branches.lift.depth_loss(views[-1].features, depth_m) * (len(rows) / dispatch.num_views))
        _record_views(dispatch, branch, rows, branches)
    if not views:
        return None, None
    if dispatch.is_masked:
        bev, covered = _masked_lift(branches.lift, views, views_chosen, num_samples)
    else:
        bev, covered = branches.lift(views, num_samples)
    present = dispatch.chose(slice(NUM_CAMERAS)).to(device)
    depth_loss = torch.stack(losses).sum() if losses else None
    return SensorBev(bev, present, torch.ones_like(present, dtype=torch.float32), covered), depth_loss


def _masked_shares(gates: Float[Tensor, "b k"], stand_in: int) -> Float[Tensor, "b k"]:
    """Share of each branch in the features of one unit: its gate, given that the unit runs.

    Where the unit is skipped the branch ``stand_in`` has all: nothing of it gets through (the unit's weight is 0), but
    that weight learns from it what running the unit would have given.
    """
    runs = 1 - gates[:, SKIP]
    is_on = (runs.detach() > 1e-6)[:, None]  # soft gates are shared out, too
    all_of_one = torch.nn.functional.one_hot(torch.tensor(stand_in, device=gates.device), NUM_BRANCHES)
    return torch.where(is_on, gates / torch.where(is_on, runs[:, None], 1.0), all_of_one.to(gates.dtype))


def _masked_lift(
    lift: Lift, views: list[ViewRows], chosen: list[Bool[Tensor, "r"]], num_samples: int
) -> tuple[Float[Tensor, "b c ny nx"], Bool[Tensor, "b ny nx"]]:
    """The lift of all views, of which only the chosen ones cover anything.

    Rows that were not chosen have the weight 0. They are splatted into a shadow of their sample, for their gradient;
    the shadow's coverage is left out.
    """
    shadowed = [
        replace(rows, sample=rows.sample + num_samples * ~is_chosen)
        for rows, is_chosen in zip(views, chosen, strict=True)
    ]
    bev, covered = lift(shadowed, 2 * num_samples)
    return bev[:num_samples] + bev[num_samples:], covered[:num_samples]


def _within_price(
    dispatch: Dispatch, name: str, branch: int, rows: Int64[Tensor, "r"], given: PointBatch, branches: PointBranches
) -> PointBatch:
    """Of samples that a bound holds for no more points than their price counts; the trace says what was left out."""
    capped = dispatch.capped[rows]
    if not capped.any():
        return given
    kept = branches.within_price(branch, given, capped.to(given.sample.device))
    _record_left_out(dispatch, name, rows.tolist(), given, kept)
    return kept


def _depths_within_price(dispatch: Dispatch, lidar: PointBatch, branches: ViewBranches) -> PointBatch:
    """The same of the points that measure depths, where any view runs: older sweeps measure none and do not count."""
    capped = dispatch.capped & dispatch.runs[:, :NUM_CAMERAS].any(dim=2).any(dim=1)
    if not capped.any():
        return lidar
    kept = branches.within_price(lidar, capped.to(lidar.sample.device))
    if kept is not lidar:
        newest = newest_sweep(lidar, torch.ones_like(lidar.present))
        _record_left_out(dispatch, DEPTH, range(len(capped)), newest, kept)
    return kept


def _record_left_out(dispatch: Dispatch, name: str, rows: Sequence[int], given: PointBatch, kept: PointBatch) -> None:
    """Into the trace, and a warning to the user."""
    if kept is given:
        return
    most = num_points_of(kept)
    less = num_points_of(given) - most
    if not less.any():
        return
    dispatch.trace.left_out += [(name, row, count) for row, count in zip(rows, less.tolist(), strict=True) if count]
    warnings.warn(
        f"{name}: some samples have more than the {int(most[less > 0].max())} points that a budget pays for; the "
        "others are left out, evenly. Raise num_points of the model's sensor to use them",
        stacklevel=2,
    )


def _record_points(
    dispatch: Dispatch, name: str, branch: int, rows: Int64[Tensor, "r"], given: PointBatch, branches: PointBranches
) -> None:
    """One entry per sample: the cost depends on how many points it really had, and on what the encoder left out."""
    counts = torch.bincount(given.sample, minlength=len(rows)).tolist()
    saved = getattr(branches.encoders()[branch], "saved_gflops", lambda: None)()
    less = [0.0] * len(counts) if saved is None else saved.tolist()
    for row, count, own in zip(rows.tolist(), counts, less, strict=True):
        dispatch.trace.add(name, BRANCHES[branch], (row,), branches.gflops_of(branch, count) - own)


def _record_views(dispatch: Dispatch, branch: int, rows: Int64[Tensor, "r"], branches: ViewBranches) -> None:
    """One entry per view, or per row where the encoder says what each one saved."""
    saved = getattr(branches.encoder, "saved_gflops", lambda: None)()
    if saved is not None and len(saved) == len(rows):
        for row, less in zip(rows.tolist(), saved.tolist(), strict=True):
            sample, view = divmod(row, NUM_CAMERAS)
            dispatch.trace.add(UNITS[view], BRANCHES[branch], (sample,), branches.gflops_of[branch] - less)
        return
    for view in range(NUM_CAMERAS):
        samples = (rows[rows % NUM_CAMERAS == view] // NUM_CAMERAS).tolist()
        if samples:
            dispatch.trace.add(UNITS[view], BRANCHES[branch], tuple(samples), branches.gflops_of[branch])
