"""What a route costs: analytic GFLOPs of every unit, branch and always-on part (1 MAC = 2 FLOPs)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fusion.routing.plan import BRANCHES, FULL, LITE, NUM_BRANCHES, SKIP
from sensors.rig import UNITS

ALWAYS = "always"
"""Unit name of what every sample pays in an ExecutionTrace."""


@dataclass(frozen=True)
class Prices:
    """GFLOPs of one row of everything that may run, for the sizes the model was built for.

    A price does not depend on the sample: point encoders are priced at a nominal number of points, so that a
    route has its cost before anything runs. What points really arrived is in the ExecutionTrace; where a budget holds,
    they are no more than that.

    Attributes:
        always: of each always-on part (router, merge, trunk, head), by name.
        units: of each unit in the order of UNITS, by branch name (``lite``, ``full``). A branch that does not exist has
            no entry; a unit that the model lacks has none at all.
    """

    always: Mapping[str, float]
    units: tuple[Mapping[str, float], ...]

    def __post_init__(self):
        if len(self.units) != len(UNITS):
            raise ValueError(f"expected prices of the {len(UNITS)} units {UNITS}, got {len(self.units)}")
        unknown = sorted({name for branches in self.units for name in branches} - set(BRANCHES[1:]))
        if unknown:
            raise ValueError(f"expected prices of the branches {BRANCHES[1:]}, got {unknown}")

    @property
    def always_gflops(self) -> float:
        return sum(self.always.values())

    @property
    def full_gflops(self) -> float:
        """Everything on: budget 1."""
        return self.always_gflops + sum(max(branches.values(), default=0.0) for branches in self.units)

    @property
    def always_share(self) -> float:
        return self.always_gflops / self.full_gflops

    def exists(self) -> Bool[Tensor, "u k"]:
        """Branches that can be chosen at all; SKIP always can."""
        table = torch.zeros(len(UNITS), NUM_BRANCHES, dtype=torch.bool)
        table[:, SKIP] = True
        for unit, branches in enumerate(self.units):
            table[unit, LITE] = BRANCHES[LITE] in branches
            table[unit, FULL] = BRANCHES[FULL] in branches
        return table

    def shares(self) -> Float[Tensor, "u k"]:
        """Cost of each branch as a share of the full cost; 0 for SKIP and for branches that do not exist."""
        table = [[branches.get(name, 0.0) / self.full_gflops for name in BRANCHES] for branches in self.units]
        return torch.tensor(table, dtype=torch.float64)

    def cost_of(self, choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b"]:
        """Share of the full cost that each sample's route costs, always-on part included."""
        shares = self.shares().to(choice.device).expand(len(choice), -1, -1)
        return self.always_share + shares.gather(-1, choice[..., None]).sum(dim=(1, 2))

    def min_budget(self, floor: tuple[str, ...] = ()) -> float:
        """The least share of the full cost that can be asked for (b_min).

        Always-on part plus the cheapest route that is not empty and holds every unit of ``floor``. A model without
        any unit has 1.
        """
        cheapest = {unit: min(branches.values()) for unit, branches in zip(UNITS, self.units, strict=True) if branches}
        unknown = sorted(set(floor) - set(cheapest))
        if unknown:
            raise ValueError(f"expected the floor to name units of this model, {tuple(cheapest)}, got {unknown}")
        held = sum(cheapest[unit] for unit in floor) if floor else min(cheapest.values(), default=0.0)
        return (self.always_gflops + held) / self.full_gflops


def conv_gflops(in_channels: int, out_channels: int, kernel: int, out_cells: int) -> float:
    """One square convolution over ``out_cells`` output positions."""
    return 2e-9 * in_channels * out_channels * kernel * kernel * out_cells


def linear_gflops(in_features: int, out_features: int, rows: int = 1) -> float:
    return 2e-9 * in_features * out_features * rows
