"""BEV windows: attention inside windows, on the windows that hold something (SparseViT, Chen et al., CVPR 2023)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fusion.trunk.tokens_blocks import block_gflops


class KeepWindows(nn.Module):
    """Transformer blocks inside square windows of the BEV, on the share of the windows with the largest L2 norm.

    The other windows keep their content. As many windows of every sample run, so they form one batch: nothing is padded
    and nothing masked. All blocks work on the same windows.

    Args:
        channels: of the map, in and out.
        window: side in cells; the map's sides must be multiples of it.
        depth: blocks.
        num_heads: of attention.
        keep: share of the windows at evaluation; 1 is the dense stage.
        train_keep: in training the share is drawn uniformly from this value to 1, per batch, so that the weights get
            used to missing windows; None for always ``keep``.
    """

    def __init__(
        self,
        channels: int,
        window: int = 8,
        depth: int = 1,
        num_heads: int = 4,
        keep: float | int = 0.5,
        train_keep: float | int | None = None,
    ):
        super().__init__()
        if not 0 < keep <= 1 or not (train_keep is None or 0 < train_keep <= 1):
            raise ValueError(f"expected keep and train_keep in (0, 1], got {keep} and {train_keep}")
        if channels % num_heads:
            raise ValueError(f"expected channels that are a multiple of num_heads, got {channels} and {num_heads}")
        self.channels, self.window, self.keep, self.train_keep = channels, window, keep, train_keep
        options = {"qkv_bias": True, "qk_norm": True}  # as in KeepTokens
        self.blocks = nn.ModuleList(Block(channels, num_heads, **options) for _ in range(depth))

    def forward(self, bev: Float[Tensor, "b c ny nx"]) -> Float[Tensor, "b c ny nx"]:
        """
        Raises:
            ValueError: sides that are no multiples of the window.
        """
        if bev.is_meta:
            return bev  # priced by ``price``, not by a counter of layers
        num_y, num_x = bev.shape[2:]
        windows = split_windows(bev, self.window)  # b w s c
        share = self.keep
        if self.training and self.train_keep is not None:
            share = self.train_keep + (1 - self.train_keep) * float(torch.rand(()))
        count = max(round(share * windows.shape[1]), 1)
        if count == windows.shape[1]:
            return joined_windows(self._worked(windows.flatten(0, 1)).view(windows.shape), (num_y, num_x))
        index = self.chosen(windows, count)[..., None, None].expand(-1, -1, *windows.shape[2:])
        kept = windows.gather(1, index)
        worked = self._worked(kept.flatten(0, 1)).view(kept.shape)
        return joined_windows(windows.scatter(1, index, worked.to(windows.dtype)), (num_y, num_x))

    def chosen(self, windows: Float[Tensor, "b w s c"], count: int) -> Int64[Tensor, "b k"]:
        """The windows of largest norm."""
        return windows.detach().float().flatten(2).norm(dim=2).topk(count, dim=1).indices

    def price(self, shape: tuple[int, int]) -> float:
        """GFLOPs of one sample at the share of evaluation."""
        check_sides(shape, self.window)
        count = max(round(self.keep * shape[0] * shape[1] / self.window**2), 1)
        return count * len(self.blocks) * block_gflops(self.channels, self.window**2)

    def _worked(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def check_sides(shape: Sequence[int], side: int) -> None:
    """Raises ValueError unless both sides of a map are multiples of the window."""
    if shape[0] % side or shape[1] % side:
        raise ValueError(
            f"expected sides that are multiples of the window {side}, got {shape[0]}x{shape[1]}; change it"
        )


def split_windows(bev: Float[Tensor, "b c ny nx"], side: int) -> Float[Tensor, "b w s c"]:
    """The cells of a map by square windows of ``side``.

    Raises:
        ValueError: sides that are no multiples of the window.
    """
    check_sides(bev.shape[2:], side)
    parts = bev.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # b c wy side wx side
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def joined_windows(windows: Float[Tensor, "b w s c"], shape: tuple[int, int]) -> Float[Tensor, "b c ny nx"]:
    """The inverse of ``split_windows``, for a map of ``shape`` (rows, columns)."""
    side = round(windows.shape[2] ** 0.5)
    parts = windows.unflatten(2, (side, side)).unflatten(1, (shape[0] // side, shape[1] // side))
    return parts.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
