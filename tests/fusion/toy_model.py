"""A model with the real router, head and plan, and encoders of a few numbers: training tests need no more."""

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.heads.center import CenterHead
from fusion.model import FusionOutput
from fusion.routing.budget import RouteTable
from fusion.routing.costs import Prices
from fusion.routing.plan import BRANCHES, ExecutionTrace, RoutingPlan, fixed_plan
from fusion.routing.router import Router, glance_of
from sensors.grid import BevGrid
from sensors.rig import NUM_CAMERAS, UNITS

CHANNELS = 8


class ToyModel(nn.Module):
    """Each chosen unit adds a bias (cameras) or a convolved point count (LiDAR, radar) to one BEV map."""

    def __init__(self):
        super().__init__()
        grid = BevGrid.square(40.0, 5.0)
        units = tuple({"lite": 1.0, "full": 2.0} for _ in UNITS)
        self._prices = Prices(always={"trunk": 4.0}, units=units)
        self.router = Router(hidden=8)
        self.routes = RouteTable(self._prices)
        self.min_budget = self.routes.min_budget
        self.camera = nn.ModuleDict({name: nn.Linear(3, CHANNELS) for name in BRANCHES[1:]})
        self.lidar = nn.ModuleDict({name: nn.Conv2d(1, CHANNELS, 3, padding=1) for name in BRANCHES[1:]})
        self.radar = nn.ModuleDict({name: nn.Conv2d(1, CHANNELS, 3, padding=1) for name in BRANCHES[1:]})
        self.trunk = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GroupNorm(2, CHANNELS), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.head = CenterHead(CHANNELS, grid, channels=8, num_convs=0)

    def prices(self) -> Prices:
        return self._prices

    def available(self, batch: Batch) -> Tensor:
        return batch.unit_present

    def plan_of(self, choice: Tensor, available: Tensor) -> RoutingPlan:
        return fixed_plan(choice, available, self._prices.cost_of(choice).float())

    def forward(self, batch: Batch, budget=1.0, plan: RoutingPlan | None = None, execution: str = "sparse"):
        if plan is None:
            plan = self.router(glance_of(batch, batch.unit_present), self.routes, budget)
        trace = ExecutionTrace(len(batch))
        trace.add("always", "full", tuple(range(len(batch))), 4.0)
        bev = torch.zeros(len(batch), CHANNELS, *self.head.grid.shape, device=batch.health.device)
        for branch, name in enumerate(BRANCHES[1:], start=1):
            for unit in range(len(UNITS)):
                rows = plan.rows(unit, branch)
                if len(rows):
                    trace.add(UNITS[unit], name, tuple(rows.tolist()), float(branch))
                    features = self._encoded(batch, unit, name, rows) * plan.gates[rows, unit, branch, None, None, None]
                    bev = bev.index_add(0, rows, features.to(bev.dtype))
        return FusionOutput(self.head(self.dropout(self.trunk(bev))), plan, trace, depth_loss=None)

    def _encoded(self, batch: Batch, unit: int, branch: str, rows: Tensor) -> Tensor:
        num_y, num_x = self.head.grid.shape
        if unit < NUM_CAMERAS:
            colour = batch.camera.images[rows, unit].mean(dim=(2, 3))
            return self.camera[branch](colour)[:, :, None, None].expand(-1, -1, num_y, num_x)
        points = (batch.lidar if UNITS[unit] == "LIDAR" else batch.radar).rows(rows)
        cell = ((points.points[:, :2] + 40.0) / 5.0).long().clamp(0, num_x - 1)
        count = torch.zeros(len(rows) * num_y * num_x, device=cell.device)
        count = count.index_add(0, (points.sample * num_y + cell[:, 1]) * num_x + cell[:, 0], torch.ones(len(cell)))
        encoder = self.lidar if UNITS[unit] == "LIDAR" else self.radar
        return encoder[branch](count.log1p().view(len(rows), 1, num_y, num_x))
