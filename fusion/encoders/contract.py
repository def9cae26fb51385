"""What an encoder has to offer, so that one written elsewhere fits in."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float32
from torch import Tensor

from datamodules.batch import PointBatch
from fusion.encoders.views import ViewFeatures
from sensors.grid import BevGrid


@runtime_checkable
class PointEncoder(Protocol):
    """Points of some samples to BEV maps; an ``nn.Module``.

    Attributes:
        channels: of the output.
        out_grid: that the output lies on.
    """

    channels: int
    out_grid: BevGrid

    def __call__(self, points: PointBatch) -> Float[Tensor, "r c ny nx"]:
        """One map for each of the ``len(points.present)`` samples, none of which may look at another."""

    def gflops(self, num_points: float | int) -> float:
        """Forward GFLOPs of one sample, linear in its number of points."""


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures to features and depths; an ``nn.Module``.

    Attributes:
        channels, num_depths: of the output.
        stride: pixels per feature cell.
    """

    channels: int
    num_depths: int
    stride: int

    def __call__(self, images: Float32[Tensor, "r 3 h w"]) -> ViewFeatures:
        """Features of each picture for itself."""

    def gflops(self, image_size_px: tuple[int, int]) -> float:
        """Forward GFLOPs of one picture of this height and width."""
