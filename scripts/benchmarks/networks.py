"""Networks to be timed, with batches that lie in memory, and the least that training one takes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from classifier.data.loader import Batch
from classifier.models import SimpleCNN, timm_model
from classifier.models.network import IMAGENET_MEAN, IMAGENET_STD, Normalize

CLASSES = 10


class Weightless(nn.Module):
    """Logits that do not look at the image: what is left of a step is the loop's own."""

    def __init__(self, *, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(images.shape[0], -1)


@dataclass(frozen=True)
class Case:
    """A network at an image size.

    Args:
        network: Takes `num_classes` and `image_size`.
        size: Pixels of a side.
        batch_size: Images a step.
    """

    name: str
    network: Callable[..., nn.Module]
    size: int
    batch_size: int

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.network(num_classes=CLASSES, image_size=(self.size, self.size))

    def batches(self, count: int, channels_last: bool = True) -> list[Batch]:
        """Random images, in memory as the loaders give them by default."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.size, self.size, 3)
        images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]
        images = [image.permute(0, 3, 1, 2) for image in images]
        return [
            {
                "image": image if channels_last else image.contiguous(),
                "label": torch.randint(CLASSES, (self.batch_size,), generator=generator),
                "index": torch.arange(self.batch_size),
            }
            for image in images
        ]


RESNET18 = Case("ResNet-18 at 128", partial(timm_model, "resnet18", pretrained=False), 128, 64)
SMALL_CNN = Case("small CNN at 64", partial(SimpleCNN, widths=(32, 64, 128, 256), hidden=(256,), drop_rate=0.4), 64, 64)
NO_WEIGHT = Case("no weight", Weightless, 8, 8)


class BareLoop:
    """Forward, backward, step, and nothing else, on the GPU where there is one."""

    def __init__(self, network: nn.Module, bf16: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD).to(self.device)
        self.network = network.to(self.device)
        self.bf16 = bf16
        self.optimizer = torch.optim.SGD(  # as configs/optimizer/sgd.yaml
            network.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.0001
        )

    def train(self, batches: Iterable[Batch]) -> int:
        """Number of images; with the device done."""
        self.network.train()
        count = 0
        for batch in batches:
            loss = functional.cross_entropy(self._forward(batch), self._here(batch["label"]))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            count += len(batch["label"])
        wait()
        return count

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> int:
        """Number of images; with the device done."""
        self.network.eval()
        count = 0
        for batch in batches:
            self._forward(batch)
            count += len(batch["label"])
        wait()
        return count

    def _forward(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: torch.Tensor = self.network(self.normalize(self._here(batch["image"])))
        return logits.float()

    def _here(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, non_blocking=True)


def wait() -> None:
    """For the GPU, which works on while the next step is prepared."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
