from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.data import ImageFolderDataModule
from classifier.data.loader import ResumableLoader
from classifier.data.transforms import train_sizes
from classifier.errors import UserError

SHIFT = {"_target_": "torchvision.transforms.v2.RandomCrop", "size": 32}
CROP = {"scale": [0.35, 1.0], "ratio": [0.75, 1.3333]}


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        (None, {0: (64, 48)}),
        (32, {0: (32, 32)}),
        ([40, 30], {0: (40, 30)}),
        ([[0, 16], [5, [40, 30]]], {0: (16, 16), 5: (40, 30)}),
        ([[5, [64, 48]], [0, 16]], {0: (16, 16), 5: (64, 48)}),
    ],
)
def test_sizes(value: Any, sizes: dict[int, tuple[int, int]]) -> None:
    assert train_sizes(value, (64, 48)) == sizes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (65, r"data\.train_size=\[65, 65\] is larger than data\.image_size=\[64, 64\]"),
        ([[0, 32], [3, [32, 96]]], r"data\.train_size=\[32, 96\] is larger"),
        (0, r"data\.train_size=0 must be a whole number of at least 1"),
        ("small", r"data\.train_size=small must be a whole number"),
        ([16, 16, 16], r"data\.train_size=\[16, 16, 16\] must be one number or \[height, width\]"),
        ([[0, 16], 32], r"must be pairs of an epoch and a size: use data\.train_size="),
        ([[0, 16, 32]], r"must be pairs of an epoch and a size"),
        ([[1, 16]], r"must name epoch 0"),
        ([[0, 16], [3, 20], [3, 24]], r"none of them twice"),
        ([[0, 16], [1.5, 24]], r"data\.train_size=1\.5 must be a whole number of at least 0, where it names an epoch"),
        ([], r"data\.train_size=\[\] must be one number"),
    ],
)
def test_a_bad_value(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_sizes(value, (64, 64))


def datamodule(folder: Path, **settings: Any) -> ImageFolderDataModule:
    arguments: dict[str, Any] = {"image_size": 32, "batch_size": 8, "num_workers": 0, "augment": {"crop": CROP}}
    module = ImageFolderDataModule(folder, **{**arguments, **settings})
    module.setup()
    return module


def epoch_of(module: ImageFolderDataModule, epoch: int) -> torch.Tensor:
    loader = module.train_dataloader()
    assert isinstance(loader, ResumableLoader)
    loader.epoch_sampler.set_epoch(epoch)
    return torch.cat([batch["image"] for batch in loader])


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"cache": "ram"}])
def test_training_images_grow(settings: dict[str, Any], folder: Path) -> None:
    module = datamodule(folder, train_size=[[0, 16], [2, [24, 20]], [3, 32]], **settings)
    shapes = [tuple(epoch_of(module, epoch).shape[2:]) for epoch in range(5)]
    assert shapes == [(16, 16), (16, 16), (24, 20), (32, 32), (32, 32)]
    assert {batch["image"].shape[2:] for batch in module.val_dataloader()} == {(32, 32)}


def test_images_of_an_epoch_are_those_of_its_size(folder: Path) -> None:
    growing = datamodule(folder, train_size=[[0, 16], [1, 24]])
    for epoch, size in enumerate((16, 24)):
        always = datamodule(folder, image_size=size)
        assert torch.equal(epoch_of(growing, epoch), epoch_of(always, epoch))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {**SHIFT, "padding": 8},
            "makes 32x32 pixels of the 16x16",
        ),
        (SHIFT, "larger than input image size"),
    ],
)
def test_transform_with_a_size_of_its_own_is_refused(transform: dict[str, Any], message: str, folder: Path) -> None:
    augment = {"crop": CROP, "transforms": {"shift": transform}}
    datamodule(folder, augment=augment)
    with pytest.raises((UserError, ValueError), match=message):
        datamodule(folder, augment=augment, train_size=16)
