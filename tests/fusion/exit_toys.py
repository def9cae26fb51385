"""A FusionModel with early exits, and head maps written by hand."""

from dataclasses import replace

import torch

from datamodules.batch import Batch
from fusion.heads.center import CenterHead, HeadOutput
from fusion.model import FusionModel
from fusion.trunk.exits import EarlyExits, ExitHead
from fusion.trunk.exits_peaks import Peaks
from fusion.trunk.trunk import BevTrunk
from sensors.grid import BevGrid
from tests.fusion.small_model import BEV, PILLARS, small_model

GRID = BevGrid.square(8.0, 1.0)


class Scripted:
    """Leaves by a table of scores per exit and sample; follows the samples by their order in the batch."""

    looks_back = False

    def __init__(self, table):
        self.table, self.rows = torch.tensor(table, dtype=torch.float32), None

    def __call__(self, history):
        number = len(history) - 1
        if number == 0:
            self.rows = torch.arange(self.table.shape[1])
        scores = self.table[number, self.rows]
        assert len(history[-1]) == len(scores)
        self.rows = self.rows[~(scores >= 0.5)]
        return scores


def one_of(batch: Batch, row: int) -> Batch:
    """One sample of a batch by itself, without labels."""
    here = slice(row, row + 1)
    names = ("images", "image_from_camera", "ego_from_camera", "present", "depth_m")
    camera = replace(batch.camera, **{name: getattr(batch.camera, name)[here] for name in names})
    points = {name: getattr(batch, name).rows(torch.tensor([row])) for name in ("lidar", "radar")}
    names = ("tokens", "scenes", "timestamp_us", "global_from_ego", "ego_from_ego_aug", "health", "thumbnails")
    names += ("ego_speed_mps", "channel_present", "unit_present", "faults", "conditions", "progress")
    return replace(batch, camera=camera, boxes=None, **points, **{name: getattr(batch, name)[here] for name in names})


def exit_model(places=(0, 1), **options) -> FusionModel:
    """``small_model`` with a trunk of three stages and exits at ``places``, all with noise in their parameters."""
    base = small_model()
    torch.manual_seed(1)
    widths = {-1: 12, 0: 12, 1: 16, 2: 8}
    heads = [ExitHead(place, widths[place], 8, CenterHead(8, PILLARS, channels=8)) for place in places]
    trunk = BevTrunk(12, widths=(12, 16, 8), depths=(1, 0, 0), strides=(1, 2, 1), out_channels=8, upsample=2)
    parts = (base.cameras, base.lidar, base.radar, base.merge, trunk, base.head, base.router)
    model = FusionModel(*parts, exits=EarlyExits(heads, **options))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in (model.trunk, model.exits, model.head):
            for parameter in module.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def maps_with(boxes, grid: BevGrid = GRID, num_samples: int = 1, background: float = -6.0) -> HeadOutput:
    """Maps with peaks at (sample, label, iy, ix, logit), centres in the middle of their cells."""
    shape = (num_samples, 10, *grid.shape)
    heatmap = torch.full(shape, background) - 0.01 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for sample, label, iy, ix, logit in boxes:
        heatmap[sample, label, iy, ix] = logit

    def zeros(width):
        return torch.zeros(num_samples, width, *grid.shape)

    return HeadOutput(
        heatmap=heatmap,
        height=zeros(1),
        offset=zeros(2) + 0.5,
        log_size=zeros(3),
        heading=zeros(2),
        velocity=zeros(2),
        attribute=zeros(8),
    )


def peaks_at(places, label=0, logit=2.0) -> Peaks:
    """One sample with a peak of one class at each x, y in metres."""
    count = len(places)
    logits = torch.full((1, count, 10), -6.0)
    logits[..., label] = logit
    xy_m = torch.tensor(places, dtype=torch.float32).view(1, count, 2)
    return Peaks(logits, torch.full((1, count), label), xy_m, torch.ones(1, count, dtype=torch.bool))


assert BEV.shape == (16, 16)
