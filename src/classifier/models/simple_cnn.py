"""A small convolutional network."""

from collections.abc import Sequence

import torch
from torch import nn

from classifier.errors import UserError, as_typed, require_choice


class SimpleCNN(nn.Module):
    """Stages of 3x3 convolutions, each followed by 2x2 max pooling, then a head.

    Args:
        num_classes: Width of the output.
        in_chans: Channels of the input.
        image_size: Height and width of the input, in pixels; `head=flatten` is made for just this size.
        widths: Output channels of each stage.
        depth: Convolutions in each stage.
        batch_norm: BatchNorm between convolution and ReLU (the convolution then has no bias).
        head: `flatten` feeds every position of the last feature map to the head, `avg` their mean.
        hidden: Width of each dense layer before the last.
        drop_rate: Dropout before the last layer.
        pretrained: Only False: there are no published weights.

    Raises:
        UserError: The image is too small to be halved `len(widths)` times, or `pretrained` is asked for.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (32, 64),
        depth: int = 1,
        batch_norm: bool = True,
        head: str = "flatten",
        hidden: Sequence[int] = (100,),
        drop_rate: float = 0.2,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if pretrained:
            raise UserError("SimpleCNN has no pretrained weights: use model.pretrained=false or init_from=...")
        require_choice("model.head", head, ("flatten", "avg"))
        height, width = (side >> len(widths) for side in image_size)
        if height < 1 or width < 1:
            least = 1 << len(widths)
            raise UserError(f"data.image_size={as_typed(image_size)} is too small: use data.image_size={least} or more")
        stages: list[nn.Module] = []
        channels = in_chans
        for stage_width in widths:
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, stage_width, 3, padding=1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(stage_width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = stage_width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        stages += [nn.AdaptiveAvgPool2d(1)] if head == "avg" else []
        self.features = nn.Sequential(*stages, nn.Flatten())
        features = channels * (1 if head == "avg" else height * width)
        layers = []
        for hidden_width in hidden:
            layers += [nn.Linear(features, hidden_width), nn.ReLU(inplace=True)]
            features = hidden_width
        self.head = nn.Sequential(*layers, nn.Dropout(drop_rate), nn.Linear(features, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float (B, in_chans, H, W) -> logits (B, num_classes)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits
