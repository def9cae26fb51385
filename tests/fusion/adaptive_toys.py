"""A small FusionModel with router, exits and tokens."""

from collections.abc import Iterator

import torch

from fusion.heads.center import CenterHead
from fusion.model import FusionModel
from fusion.trunk.exits import EarlyExits
from fusion.trunk.exits_head import ExitHead
from fusion.trunk.tokens import KeepTokens
from fusion.trunk.trunk import BevTrunk
from tests.fusion.small_model import PILLARS, small_model


def adaptive_model(places: tuple[int, ...] = (-1, 0), **options) -> FusionModel:
    """``small_model`` with exits over LiDAR and radar and after the first of two stages, tokens in the second one.

    Args:
        places: of the exits.
        options: of the exits.
    """
    base = small_model()
    torch.manual_seed(1)
    heads = [ExitHead(place, 12, 8, CenterHead(8, PILLARS, channels=8, num_convs=0)) for place in places]
    tokens = KeepTokens(16, num_heads=2, window=4, target=0.5, spread=2.0)
    trunk = BevTrunk(12, widths=(12, 16), depths=(0, 0), strides=(1, 2), out_channels=8, upsample=2, tokens=tokens)
    parts = (base.cameras, base.lidar, base.radar, base.merge, trunk, base.head, base.router)
    model = FusionModel(*parts, exits=EarlyExits(heads, **{"first_group": ["lidar", "radar"], **options}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in (model.trunk, model.exits, model.head, model.router):
            for parameter in module.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def restored(parameter: torch.nn.Parameter) -> Iterator[torch.nn.Parameter]:
    """For a fixture: the parameter, to be overwritten, which has its values again afterwards."""
    before = parameter.detach().clone()
    yield parameter
    with torch.no_grad():
        parameter.copy_(before)
