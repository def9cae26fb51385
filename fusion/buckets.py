"""Compiling the encoders unit by unit: sub-batches are padded to a few sizes, so that few shapes are compiled.

Routing stays eager: a compiled graph cannot hold a choice that depends on data. Rows of the padding repeat the last
row, and are cut off afterwards; encoders have no batch statistics, so they change nothing.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion.encoders.views import ViewFeatures
from fusion.model import FusionModel

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96)


class BucketedImages(nn.Module):
    """An image encoder that only ever sees batches of a few sizes.

    Args:
        encoder: from (rows, 3, h, w) to ViewFeatures.
        buckets: sizes that are run; more rows than the largest run in several parts.
        compiled: what runs in place of the encoder, e.g. ``torch.compile(encoder)``; None: the encoder itself.
    """

    def __init__(
        self,
        encoder: nn.Module,
        buckets: Sequence[int] = BUCKETS,
        compiled: Callable[[Tensor], ViewFeatures] | None = None,
    ):
        super().__init__()
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ValueError(f"expected bucket sizes that rise from 1 or more, got {list(buckets)}")
        self.encoder, self.buckets = encoder, tuple(buckets)
        self._run = [encoder if compiled is None else compiled]  # in a list: not a second owner of the parameters
        self.stride, self.channels, self.num_depths = encoder.stride, encoder.channels, encoder.num_depths

    def forward(self, images: Float[Tensor, "r 3 h w"]) -> ViewFeatures:
        if not len(images):
            return self.encoder(images)
        parts = [self._padded(part) for part in images.split(self.buckets[-1])]
        return ViewFeatures(*(torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*parts, strict=True)))

    def _padded(self, images: Float[Tensor, "r 3 h w"]) -> tuple[Tensor, Tensor]:
        rows = len(images)
        size = next(bucket for bucket in self.buckets if bucket >= rows)
        if size > rows:
            images = torch.cat([images, images[-1:].expand(size - rows, -1, -1, -1)])
        found = self._run[0](images)
        return found.context[:rows], found.depth_logits[:rows]

    def gflops(self, image_size_px: tuple[int, int]) -> float:
        """Of one row; the padding is not counted, as no route asked for it."""
        return self.encoder.gflops(image_size_px)


def compile_units(model: FusionModel, buckets: Sequence[int] = BUCKETS, **options) -> FusionModel:
    """Compiles the image encoder in buckets; call it after loading weights. Point encoders stay eager.

    The parameters' names change by the wrapper (``cameras.encoder.encoder...``).

    Args:
        options: of ``torch.compile``. Shapes are static: one graph per bucket and picture size.
    """
    if model.cameras is not None:
        encoder = model.cameras.encoder
        compiled = torch.compile(encoder, dynamic=False, **options)
        model.cameras.encoder = BucketedImages(encoder, buckets, compiled)
    return model
