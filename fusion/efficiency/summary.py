"""Size and price of a model: parameters and GFLOPs of every unit, branch and always-on part."""

from dataclasses import dataclass

from torch import nn

from fusion.model import FusionModel
from fusion.routing.costs import ALWAYS
from fusion.routing.plan import BRANCHES
from sensors.rig import CAMERAS, LIDAR_UNIT, RADAR_UNIT, UNITS


@dataclass(frozen=True)
class SummaryRow:
    """One part of a model.

    Attributes:
        unit: name of a unit, ``CAMERA`` for each of the six views, or ``always``.
        part: branch of the unit, or name of the always-on part.
        num_parameters: of the modules that run. The branches of a view share theirs.
        gflops: of one sample (one view for a camera), for the nominal number of points; 1 MAC = 2 FLOPs.
        share: of the cost with everything on, i.e. what it takes from the budget.
    """

    unit: str
    part: str
    num_parameters: int
    gflops: float
    share: float


@dataclass(frozen=True)
class ModelSummary:
    """Attributes:
    rows: always-on parts first, then the units' branches.
    num_parameters: of the whole model.
    full_gflops: one sample with everything on.
    min_budget: least share of that which can be asked for.
    """

    rows: tuple[SummaryRow, ...]
    num_parameters: int
    full_gflops: float
    min_budget: float

    def as_markdown(self) -> str:
        """A table to paste into a README."""
        lines = ["| unit | part | parameters | GFLOPs | share |", "|---|---|---:|---:|---:|"]
        for row in self.rows:
            cells = (row.unit, row.part, f"{row.num_parameters:,}", f"{row.gflops:.3f}", f"{row.share:.1%}")
            lines.append(f"| {' | '.join(cells)} |")
        total = ("all", "full", f"{self.num_parameters:,}", f"{self.full_gflops:.3f}", "100.0%")
        return "\n".join([*lines, f"| {' | '.join(total)} |"])


def summarize(model: FusionModel) -> ModelSummary:
    """Parameters and analytic GFLOPs, as the router and the budget see them."""
    prices = model.prices()
    always = {name: getattr(model, name) for name in prices.always}
    rows = [
        SummaryRow(ALWAYS, name, _size(module), prices.always[name], prices.always[name] / prices.full_gflops)
        for name, module in always.items()
    ]
    for label, unit, modules in _units(model):
        for branch, gflops in prices.units[unit].items():
            size = _size(modules[BRANCHES.index(branch)])
            rows.append(SummaryRow(label, branch, size, gflops, gflops / prices.full_gflops))
    return ModelSummary(tuple(rows), _size(model), prices.full_gflops, model.min_budget)


def _units(model: FusionModel) -> list[tuple[str, int, dict[int, nn.Module]]]:
    """Label, unit and the modules of its branches, for every kind of unit that the model has."""
    units = []
    if model.cameras is not None:
        units.append(("CAMERA", UNITS.index(CAMERAS[0]), dict.fromkeys(model.cameras.sizes_px, model.cameras)))
    if model.lidar is not None:
        units.append((UNITS[LIDAR_UNIT], LIDAR_UNIT, model.lidar.encoders()))
    if model.radar is not None:
        units.append((UNITS[RADAR_UNIT], RADAR_UNIT, model.radar.encoders()))
    return units


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
