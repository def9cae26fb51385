"""Camera views through a timm ViT, with as many tokens as a token method leaves."""

from collections.abc import Mapping

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fusion.encoders.views import IMAGENET_MEAN, IMAGENET_STD, ViewFeatures
from fusion.encoders.vit_teacher import TokenTeacher
from fusion.encoders.vit_tokens import Dense, TokenMethod
from fusion.ops.blocks import conv_norm_relu, group_norm
from fusion.ops.flops import counted_gflops
from fusion.ops.pretrained import fetches


class VitViewEncoder(nn.Module):
    """Images to context and depth logits, one feature per patch. A row's result never depends on others.

    Args:
        backbone: a Vision Transformer of timm, such as ``vit_small_patch16_224``.
        channels: of the context.
        num_depths: bins of the lift.
        image_size_px: height and width that the position embedding is made for; others are interpolated.
        method: which tokens the blocks work on; None for all. See ``vit_tokens`` and ``vit_learned``.
        pretrained: timm's weights.
        neck_channels: of the two convolutions after the ViT.
        backbone_options: further arguments for timm, e.g. ``{"depth": 4, "embed_dim": 64, "num_heads": 4}``.
        teacher: what the ViT with all its tokens adds to the term ``tokens`` in training; None for nothing.
        stride: side of a patch, which the data's configuration reads here; None where nobody asks.

    Attributes:
        rate: share of its own rate that the token method works at in evaluation, see ``set_rate``.

    Raises:
        ValueError: a backbone that is no plain ViT: its tokens cannot be dropped; a method that does not fit it; a
            teacher where none are dropped; or a stride that is not the side of its patches.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        num_depths: int,
        image_size_px: tuple[int, int] | list[int] = (256, 704),
        method: TokenMethod | None = None,
        pretrained: bool = False,
        neck_channels: int = 128,
        backbone_options: Mapping | None = None,
        *,
        teacher: TokenTeacher | None = None,
        stride: int | None = None,
    ):
        super().__init__()
        options = {"num_classes": 0, "dynamic_img_size": True, **(backbone_options or {})}
        try:
            vit = timm.create_model(backbone, pretrained=fetches(pretrained), img_size=tuple(image_size_px), **options)
        except (RuntimeError, TypeError) as error:
            raise ValueError(_no_vit(backbone, str(error))) from error
        if not isinstance(vit, VisionTransformer):
            raise ValueError(_no_vit(backbone, type(vit).__name__))
        vit.norm = nn.Identity() if vit.norm is None else vit.norm
        self.vit, self.method = vit, method if method is not None else Dense()
        if hasattr(self.method, "check"):
            self.method.check(vit)
        self.rate, self._saved, self.teacher = 1.0, None, teacher
        if teacher is not None:
            if isinstance(self.method, Dense):
                raise ValueError("expected a token method for a teacher, got none; choose one or leave the teacher out")
            teacher.attach(vit)
        self.channels, self.num_depths, self.stride = channels, num_depths, vit.patch_embed.patch_size[0]
        if stride not in (None, self.stride):
            raise ValueError(f"expected a stride of {self.stride}, the side of a patch of {backbone}, got {stride}")
        self.neck = nn.Sequential(
            nn.Conv2d(vit.embed_dim, neck_channels, 1),
            group_norm(neck_channels),
            nn.ReLU(inplace=True),
            *conv_norm_relu(neck_channels, neck_channels),
            nn.Conv2d(neck_channels, channels + num_depths, 1),
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "r 3 h w"]) -> ViewFeatures:
        """Features of the rows; with no rows nothing runs.

        Args:
            images: RGB in [0, 1]; sides must be multiples of the patch.
        """
        num_rows, _, height, width = images.shape
        if self.has_rate:
            self.method.rate = 1.0 if self.training else self.rate
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"expected image sides that are multiples of {self.stride}, got {height}x{width}; "
                "change the image size or the backbone"
            )
        size = (height // self.stride, width // self.stride)
        if num_rows == 0:
            return ViewFeatures(images.new_zeros(0, self.channels, *size), images.new_zeros(0, self.num_depths, *size))
        normalised = (images - self.mean) / self.std
        tokens = self.tokens(normalised)
        patches = self.vit.norm(self.method(self.vit.blocks, tokens, self.vit.num_prefix_tokens))
        self._saved = None if self.training else self._savings(num_rows, size)
        head = self.neck(patches.transpose(1, 2).unflatten(2, size))
        if self.teacher is not None and self.training:
            kept = getattr(self.method, "last_kept", None)
            self.teacher.compare(self.vit, self.neck, normalised, patches, head[:, self.channels :], kept)
        return ViewFeatures(head[:, : self.channels], head[:, self.channels :])

    def tokens(self, images: Float[Tensor, "r 3 h w"]) -> Float[Tensor, "r m c"]:
        """Prefix and patches with their positions, of normalised images."""
        return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))

    def gflops(self, image_size_px: tuple[int, int]) -> float:
        """Forward GFLOPs of one view of this height and width, at the method's own rate: the most that it costs."""
        size = (image_size_px[0] // self.stride, image_size_px[1] // self.stride)
        patch = self.vit.patch_embed.proj
        embedding = 2e-9 * patch.weight.numel() * size[0] * size[1]
        blocks = self.block_gflops(size[0] * size[1])
        return embedding + blocks + counted_gflops(self.neck, (1, self.vit.embed_dim, *size))

    def block_gflops(self, num_patches: int, rate: float = 1.0) -> float:
        """What the blocks cost of one view at a share of the method's own rate."""
        dim, depth, num_prefix, mlp_ratio = self._sizes()
        set_to = getattr(self.method, "rate", None)
        try:
            if self.has_rate:
                self.method.rate = rate
            return self.method.gflops(dim, depth, num_prefix, num_patches, mlp_ratio)
        finally:
            if self.has_rate:
                self.method.rate = set_to

    @property
    def has_rate(self) -> bool:
        """Whether ``set_rate`` can change how many tokens take part."""
        return getattr(self.method, "rate", None) is not None

    def set_rate(self, rate: float) -> None:
        """Fewer tokens at evaluation than the method is made for: 1 is its own rate, which is what views are priced at.

        Raises:
            ValueError: a rate outside (0, 1], or a method without one.
        """
        if not 0 < rate <= 1 or not (self.has_rate or rate == 1):
            raise ValueError(
                f"expected a rate in (0, 1] of EVit, ToMe, GuidedKeep or DynamicVit with keep below 1, got {rate:g} of "
                f"{type(self.method).__name__}; change the method"
            )
        self.rate = float(rate)

    def saved_gflops(self) -> Float[Tensor, "r"] | None:
        """What each row of the last pass at evaluation saved of ``gflops``; None for nothing."""
        return self._saved

    def _savings(self, num_rows: int, size: tuple[int, int]) -> Float[Tensor, "r"] | None:
        dim, depth, num_prefix, mlp_ratio = self._sizes()
        if hasattr(self.method, "saved_gflops"):
            return self.method.saved_gflops(dim, depth, num_prefix, mlp_ratio)
        if self.rate == 1:
            return None
        less = self.block_gflops(size[0] * size[1]) - self.block_gflops(size[0] * size[1], self.rate)
        return torch.full((num_rows,), less, dtype=torch.float64)

    def _sizes(self) -> tuple[int, int, int, float]:
        """Width, blocks, prefix tokens and hidden share of the MLP, as token methods are asked for their price."""
        vit = self.vit
        hidden = vit.blocks[0].mlp.fc1.out_features
        return vit.embed_dim, len(vit.blocks), vit.num_prefix_tokens, hidden / vit.embed_dim


def _no_vit(name: str, got: str) -> str:
    return (
        f"expected a Vision Transformer of timm for a token method, got {name!r} ({got}); use vit_small_patch16_224 or "
        "the convolutional ViewEncoder without a token method"
    )
