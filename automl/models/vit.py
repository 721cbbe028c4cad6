"""Vision transformer for small images (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

As Beyer et al. 2022 ("Better plain ViT baselines for ImageNet-1k") have it: the mean of all tokens is classified, there
is no class token. Layer norm comes before each half of a block. Positions are learnt.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from search_spaces.errors import InputError

Size = Annotated[int, Field(ge=1)]


class Attention(nn.Module):
    """Attention of all tokens to all, in several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] -> the same shape."""
        images, tokens, _ = x.shape
        parts = self.qkv(x).reshape(images, tokens, 3, self.heads, self.head_width)
        query, key, value = (parts[:, :, part].transpose(1, 2) for part in range(3))
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then two linear layers token by token, each beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] -> the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.fc2(self.gelu(self.fc1(self.norm2(x)))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches as tokens, blocks of attention, the mean token classified."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, columns = input_shape
        if height % patch or columns % patch:
            raise InputError(
                f"vit cuts images into patches of {patch} x {patch}, which do not divide {height} x {columns}; choose "
                "another patch"
            )
        if width % heads:
            raise InputError(f"the width of vit is a multiple of its heads, got {width} and {heads}")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, height // patch * (columns // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        features = self.norm(self.blocks(tokens)).transpose(1, 2)  # pooled as a feature map is
        return self.fc(features.mean(2))  # type: ignore[no-any-return]


def vit(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    patch: Size = 4,
    width: Size = 96,
    depth: Size = 4,
    heads: Size = 6,
    mlp_ratio: Size = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Vision transformer for images of 16 or 32 pixels: 4 blocks, 6 heads of 16, patches of 4 x 4."""
    return VisionTransformer(input_shape, classes, patch, width, depth, heads, mlp_ratio * width, dropout)
