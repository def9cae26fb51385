"""How long routes take on one device: a table of measured milliseconds per part and number of rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from fusion.routing.plan import BRANCHES, SKIP
from sensors.rig import NUM_CAMERAS, UNITS

ALWAYS_PART = "always"
DISPATCH_PART = "dispatch"
CAMERA_PART = "CAMERA"


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by part and rows; nothing is extrapolated.

    Attributes:
        device: name of the processor or accelerator.
        date: ISO date of the measurement.
        threads: of the CPU.
        parts: ``CAMERA/full``, ``LIDAR/lite``, ..., ``always`` (glance, merge, trunk, head) and ``dispatch`` ->
            {rows: median milliseconds}. Rows are sample-view pairs for ``CAMERA``, samples elsewhere.
    """

    device: str
    date: str
    threads: int
    parts: Mapping[str, Mapping[int, float]]

    def ms(self, part: str, rows: int) -> float:
        """Of ``rows`` rows; between two measured sizes on the straight line, below the smallest as the smallest.

        Raises:
            ValueError: a part that was not measured, or more rows than were.
        """
        if rows == 0:
            return 0.0
        if part not in self.parts:
            raise ValueError(f"expected a measured part among {', '.join(self.parts)}, got '{part}'; measure it too")
        sizes = sorted(self.parts[part])
        if rows > sizes[-1]:
            raise ValueError(f"expected at most {sizes[-1]} rows of {part}, as measured, got {rows}; measure more")
        above = next(size for size in sizes if size >= rows)
        below = max((size for size in sizes if size <= rows), default=above)
        low, high = self.parts[part][below], self.parts[part][above]
        return low if above == below else low + (high - low) * (rows - below) / (above - below)

    def batch_ms(self, choice: Int64[Tensor, "b u"]) -> float:
        """Of one batch with these routes."""
        total = self.ms(ALWAYS_PART, len(choice)) + self.ms(DISPATCH_PART, len(choice))
        for branch, name in enumerate(BRANCHES):
            if branch == SKIP:
                continue
            total += self.ms(f"{CAMERA_PART}/{name}", int((choice[:, :NUM_CAMERAS] == branch).sum()))
            for unit in range(NUM_CAMERAS, len(UNITS)):
                total += self.ms(f"{UNITS[unit]}/{name}", int((choice[:, unit] == branch).sum()))
        return total

    def route_ms(self, routes: Int64[Tensor, "n u"]) -> Float64[Tensor, "n"]:
        """Of each route alone, at batch 1."""
        views = {branch: (routes[:, :NUM_CAMERAS] == branch).sum(dim=1) for branch in range(1, len(BRANCHES))}
        total = torch.full((len(routes),), self.ms(ALWAYS_PART, 1) + self.ms(DISPATCH_PART, 1), dtype=torch.float64)
        for branch, rows in views.items():
            part = f"{CAMERA_PART}/{BRANCHES[branch]}"
            total += torch.tensor([self.ms(part, n) if (rows == n).any() else 0.0 for n in range(7)])[rows]
            for unit in range(NUM_CAMERAS, len(UNITS)):
                runs = routes[:, unit] == branch
                if runs.any():
                    total[runs] += self.ms(f"{UNITS[unit]}/{BRANCHES[branch]}", 1)
        return total

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        fields = json.loads(text)
        parts = {part: {int(rows): float(ms) for rows, ms in sizes.items()} for part, sizes in fields["parts"].items()}
        return cls(**{**fields, "parts": parts})

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """From a file that ``to_json`` wrote.

        Raises:
            FileNotFoundError: there is none.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a latency table, there is none at {path}; write one first")
        return cls.from_json(path.read_text(encoding="utf-8"))
