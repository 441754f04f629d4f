"""Mixup and cutmix: the images and labels of a batch, mixed with each other."""

import torch
from torch import nn
from torchvision.transforms.v2 import CutMix, MixUp

from classifier.errors import require_number


class BatchMix(nn.Module):
    """Mixes a batch with itself, drawn for each batch; at any batch size.

    Args:
        mixup: Alpha of the Beta distribution of the shares, 0 for none. With both, each batch draws one of them.
        cutmix: The same for cutmix.

    Source: H. Zhang et al., mixup, ICLR 2018; S. Yun et al., CutMix, ICCV 2019.
    """

    def __init__(self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        super().__init__()
        self.kinds: list[nn.Module] = []
        for name, kind, alpha in (("mixup", MixUp, mixup), ("cutmix", CutMix, cutmix)):
            require_number(f"mix.{name}", alpha, least=0)
            if alpha > 0:
                self.kinds.append(kind(alpha=alpha, num_classes=num_classes))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images float (B, C, H, W), labels int64 (B,) -> the same, or mixed images and shares float (B, K)."""
        if not self.kinds:
            return images, labels
        chosen = self.kinds[int(torch.randint(len(self.kinds), ()))] if len(self.kinds) > 1 else self.kinds[0]
        mixed: tuple[torch.Tensor, torch.Tensor] = chosen(images, labels)
        return mixed
