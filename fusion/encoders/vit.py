"""Camera views through a timm ViT, with as many tokens as a token method leaves."""

from collections.abc import Mapping

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fusion.encoders.views import IMAGENET_MEAN, IMAGENET_STD, ViewFeatures
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

    Raises:
        ValueError: a backbone that is no plain ViT: its tokens cannot be dropped.
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
        self.channels, self.num_depths, self.stride = channels, num_depths, vit.patch_embed.patch_size[0]
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
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"expected image sides that are multiples of {self.stride}, got {height}x{width}; "
                "change the image size or the backbone"
            )
        size = (height // self.stride, width // self.stride)
        if num_rows == 0:
            return ViewFeatures(images.new_zeros(0, self.channels, *size), images.new_zeros(0, self.num_depths, *size))
        tokens = self.tokens((images - self.mean) / self.std)
        patches = self.vit.norm(self.method(self.vit.blocks, tokens, self.vit.num_prefix_tokens))
        head = self.neck(patches.transpose(1, 2).unflatten(2, size))
        return ViewFeatures(head[:, : self.channels], head[:, self.channels :])

    def tokens(self, images: Float[Tensor, "r 3 h w"]) -> Float[Tensor, "r m c"]:
        """Prefix and patches with their positions, of normalised images."""
        return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))

    def gflops(self, image_size_px: tuple[int, int]) -> float:
        """Forward GFLOPs of one view of this height and width."""
        size = (image_size_px[0] // self.stride, image_size_px[1] // self.stride)
        block = self.vit.blocks[0]
        method = self.method.gflops(
            self.vit.embed_dim,
            len(self.vit.blocks),
            self.vit.num_prefix_tokens,
            size[0] * size[1],
            block.mlp.fc1.out_features / self.vit.embed_dim,
        )
        patch = self.vit.patch_embed.proj
        embedding = 2e-9 * patch.weight.numel() * size[0] * size[1]
        return embedding + method + counted_gflops(self.neck, (1, self.vit.embed_dim, *size))


def _no_vit(name: str, got: str) -> str:
    return (
        f"expected a Vision Transformer of timm for a token method, got {name!r} ({got}); use vit_small_patch16_224 or "
        "the convolutional ViewEncoder without a token method"
    )
