"""Camera views: a timm backbone, a top-down neck, and a head that gives context and depth for the lift."""

from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn

from fusion.encoders.perspective import NUM_CLASS_CHANNELS, with_class_channels
from fusion.ops.blocks import conv_norm_relu, enlarged, group_norm
from fusion.ops.flops import counted_gflops
from fusion.ops.pretrained import fetches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ViewFeatures:
    """What the lift needs of R chosen (sample, view) rows.

    Attributes:
        context: features of each cell of ``stride`` pixels.
        depth_logits: over the depth bins of the lift.
    """

    context: Float[Tensor, "r c fh fw"]
    depth_logits: Float[Tensor, "r d fh fw"]


class ViewEncoder(nn.Module):
    """Images to context and depth logits at ``stride``. No batch statistics: a row's result never depends on others.

    Args:
        backbone: any timm model with ``features_only``.
        pretrained: timm's ImageNet weights with their batch norms frozen; otherwise GroupNorm, from scratch.
        channels: of the context.
        num_depths: bins of the lift.
        stride: pixels per feature cell: 8, 16 or another resolution of the backbone.
        neck_channels: of the top-down neck.
        backbone_options: further arguments for timm, e.g. ``{"channels": [32, 64, 128, 256]}`` for a narrow ResNet.
        class_channels: whether the first ten channels of the context are scores of the ten classes, which a loss in the
            picture teaches (``fusion.encoders.perspective``).
        method, teacher: of a ``VitViewEncoder``, which has tokens; here None.

    Raises:
        ValueError: no such backbone or stride, fewer than ten channels for the classes, or a token method.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        num_depths: int,
        stride: int = 8,
        pretrained: bool = False,
        neck_channels: int = 64,
        backbone_options: Mapping | None = None,
        class_channels: bool = False,
        *,
        method: object = None,
        teacher: object = None,
    ):
        super().__init__()
        for name, given in (("token method", method), ("teacher", teacher)):
            if given is not None:
                raise ValueError(
                    f"expected no {name} in the convolutional ViewEncoder, which has no tokens, got "
                    f"{type(given).__name__}; use fusion.encoders.vit.VitViewEncoder (model=tiny_vit), or remove it"
                )
        if class_channels and channels < NUM_CLASS_CHANNELS:
            raise ValueError(f"expected at least {NUM_CLASS_CHANNELS} channels for class_channels, got {channels}")
        self.class_channels = class_channels
        self.stride, self.channels, self.num_depths = stride, channels, num_depths
        self.backbone = _backbone(backbone, pretrained, stride, dict(backbone_options or {}))
        widths = self.backbone.feature_info.channels()
        reductions = self.backbone.feature_info.reduction()
        self.factors = [coarse // fine for fine, coarse in zip(reductions, reductions[1:], strict=False)]
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck_channels, 1) for width in widths)
        self.neck = nn.Sequential(
            group_norm(neck_channels), nn.ReLU(inplace=True), *conv_norm_relu(neck_channels, neck_channels)
        )
        self.head = nn.Conv2d(neck_channels, channels + num_depths, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        # Faster by a tenth to a third on CPUs and on tensor cores; the images take the same layout in forward.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "r 3 h w"]) -> ViewFeatures:
        """Features of the rows; with no rows nothing runs.

        Args:
            images: RGB in [0, 1]; sides must be multiples of the stride.

        Raises:
            ValueError: a side is not a multiple of the stride.
        """
        num_rows, _, height, width = images.shape
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"expected image sides that are multiples of {self.stride}, got {height}x{width}; "
                "change the image size or the encoder's stride"
            )
        if num_rows == 0:
            size = (height // self.stride, width // self.stride)
            return ViewFeatures(images.new_zeros(0, self.channels, *size), images.new_zeros(0, self.num_depths, *size))
        head = self._head_map(images)
        context = head[:, : self.channels]
        return ViewFeatures(with_class_channels(context) if self.class_channels else context, head[:, self.channels :])

    def gflops(self, image_size_px: tuple[int, int]) -> float:
        """Forward GFLOPs of one view of ``image_size_px`` (height, width)."""
        return counted_gflops(_HeadMap(self), (1, 3, *image_size_px))

    def _head_map(self, images: Float[Tensor, "r 3 h w"]) -> Float[Tensor, "r k fh fw"]:
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        levels = [lateral(level) for lateral, level in zip(self.laterals, self.backbone(normalised), strict=True)]
        merged = levels.pop()
        for factor, level in zip(reversed(self.factors), reversed(levels), strict=True):
            merged = level + enlarged(merged, level, factor)
        return self.head(self.neck(merged))


class _HeadMap(nn.Module):
    """The part of a ViewEncoder that FLOPs are counted in."""

    def __init__(self, encoder: ViewEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder._head_map(images)


def _backbone(name: str, pretrained: bool, stride: int, options: dict) -> nn.Module:
    """The backbone's levels from ``stride`` on, coarser ones included, free of batch statistics."""
    try:
        with torch.device("meta"):  # only to ask for its levels
            reductions = timm.create_model(name, features_only=True, **options).feature_info.reduction()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a timm model with feature maps, got {name!r} with {options}: {error}; see timm.list_models()"
        ) from error
    if stride not in reductions:
        raise ValueError(f"expected a stride among {reductions} of {name}, got {stride}; change the stride")
    levels = tuple(range(reductions.index(stride), len(reductions)))
    backbone = timm.create_model(
        name, features_only=True, pretrained=fetches(pretrained), out_indices=levels, **options
    )
    return freeze_batch_norm_2d(backbone) if pretrained else _group_normed(backbone)


def _group_normed(module: nn.Module) -> nn.Module:
    """Every batch norm replaced by a GroupNorm with the same affine start (ResNets start some scales at zero)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = group_norm(child.num_features)
            norm.load_state_dict({"weight": child.weight, "bias": child.bias})
            fused = isinstance(child, BatchNormAct2d)
            setattr(module, name, nn.Sequential(norm, child.drop, child.act) if fused else norm)
        else:
            _group_normed(child)
    return module
