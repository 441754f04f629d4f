"""ResNet-9: a residual network for small pictures that trains in minutes.

Source: D. Page, How to train your ResNet, 2018 (DAWNBench's CIFAR-10 entry); https://github.com/davidcpage/cifar10-fast
"""

from collections.abc import Sequence

import torch
from torch import nn

from classifier.errors import UserError, as_typed


def conv_block(in_chans: int, out_chans: int, pool: bool = False) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU, then 2x2 max pooling where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_chans),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolution blocks, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float (B, C, H, W) -> the same shape."""
        out: torch.Tensor = features + self.block(features)
        return out


class ResNet9(nn.Module):
    """Eight convolutions and a linear layer; 8x8 pixels at least.

    Args:
        num_classes: Width of the output.
        in_chans: Channels of the input.
        image_size: Height and width of the input, in pixels.
        width: Channels of the first layer, doubled by each of three poolings; 64 in the source.
        scale: Factor on the logits, 0.125 in the source: it keeps the first steps at a high learning rate small.
        pretrained: Only False: there are no published weights.

    Raises:
        UserError: The image is too small to be halved three times, or `pretrained` is asked for.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: Sequence[int] = (32, 32),
        width: int = 64,
        scale: float = 0.125,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if pretrained:
            raise UserError("ResNet9 has no pretrained weights: use model.pretrained=false or init_from=...")
        if min(image_size) < 8:
            raise UserError(f"data.image_size={as_typed(image_size)} is too small: use data.image_size=8 or more")
        self.features = nn.Sequential(
            conv_block(in_chans, width),
            conv_block(width, 2 * width, pool=True),
            Residual(2 * width),
            conv_block(2 * width, 4 * width, pool=True),
            conv_block(4 * width, 8 * width, pool=True),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, num_classes, bias=False)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float (B, in_chans, H, W) -> logits (B, num_classes)."""
        logits: torch.Tensor = self.head(self.features(images)) * self.scale
        return logits
