from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop

from classifier.data import ImageFolderDataModule
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.data.loader import ResumableLoader
from classifier.data.transforms import Augmentation, Preprocessing, random_region, train_sizes
from classifier.errors import UserError
from classifier.runs import plain
from classifier.seeding import seed_place
from tests.generate import picture, save
from tests.verbs.command import REPOSITORY

CROP = {"scale": [0.3, 1.0], "ratio": [0.75, 1.33]}
FLIP = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save(picture("red", (64, 48)), tmp_path / "x.png")


@pytest.mark.parametrize(
    ("image_size", "image", "crop_pct", "region"),
    [
        ((100, 100), (40, 20), 1.0, (10, 0, 30, 20)),  # smaller than wanted
        ((100, 100), (400, 200), 0.5, (150, 50, 250, 150)),
        ((50, 100), (400, 400), 1.0, (0, 100, 400, 300)),  # image_size is (height, width)
        ((50, 100), (200, 400), 0.8, (20, 160, 180, 240)),
        ((100, 50), (100, 300), 1.0, (0, 50, 100, 250)),
    ],
)
def test_crop_takes_the_middle(
    image_size: tuple[int, int], image: tuple[int, int], crop_pct: float, region: tuple[int, ...]
) -> None:
    assert Preprocessing(image_size, crop_pct=crop_pct).region(*image) == pytest.approx(region)


@pytest.mark.parametrize(("resize", "left"), [("crop", (0, 255, 0)), ("squash", (255, 0, 0))])
def test_the_region_is_what_is_read(tmp_path: Path, resize: str, left: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (80, 20), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 30, 20))
    read = Preprocessing((10, 10), resize)(save(image, tmp_path / "x.png"))
    assert tuple(read[:, 5, 1].tolist()) == left
    assert tuple(read[:, 5, 8].tolist()) == (0, 255, 0)


@pytest.mark.parametrize(("suffix", "size"), [("png", (30, 20)), ("jpg", (30, 20)), ("jpg", (300, 400))])
def test_a_picture_is_the_same_in_whatever_form_it_comes(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    path = save(picture("red", (60, 40)).resize((600, 400)), tmp_path / f"x.{suffix}", exif=exif)
    numbers = Preprocessing(size)
    expected = numbers(path)
    assert torch.equal(numbers(str(path)), expected)
    with Image.open(path) as image:
        # twice, as the first has decoded it
        forms: list[Any] = [image, image, image.copy(), np.array(ImageOps.exif_transpose(image))]
        found = torch.stack([numbers(form) for form in forms])
        assert image.size == (600, 400)
        grey = numbers(np.array(image.convert("L")))
    # a JPEG file is decoded at a fraction of its size
    tolerance = 12 if suffix == "jpg" and size[0] < 100 else 1
    assert (found.int() - expected.int()).abs().max() <= tolerance
    assert torch.equal(grey, grey[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8, 3), "U1"), np.zeros((8, 8, 4), np.uint8), np.zeros((3, 8, 8), np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"\(H, W"):
        Preprocessing((8, 8))(pixels)


@pytest.mark.parametrize(
    "numbers", [Preprocessing((9, 9)), Preprocessing((32, 48), "squash", 0.875, "bicubic", 1, (0, 9.5))]
)
def test_to_dict_and_back(numbers: Preprocessing) -> None:
    stored = numbers.to_dict()
    assert Preprocessing.from_dict(stored) == numbers
    assert all(isinstance(value, str | int | float | list | None) for value in stored.values())


@pytest.mark.parametrize("image", [(300, 200), (40, 400), (400, 40), (3, 2)])
def test_random_crops_are_distributed_as_torchvisions(image: tuple[int, int]) -> None:
    width, height = image
    scale, ratio = [0.2, 0.9], [0.6, 1.5]
    torch.manual_seed(0)
    ours = torch.tensor([random_region(width, height, scale, ratio) for _ in range(4000)])
    draws = [RandomResizedCrop.get_params(torch.empty(1, height, width), scale, ratio) for _ in range(4000)]
    theirs = torch.tensor([(left, top, left + w, top + h) for top, left, h, w in draws]).float()
    size = torch.tensor([width, height, width, height])
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert (torch.quantile(ours / size, share, 0) - torch.quantile(theirs / size, share, 0)).abs().max() < 0.05
    assert (torch.corrcoef((ours / size).T) - torch.corrcoef((theirs / size).T)).nan_to_num().abs().max() < 0.08


def test_transforms_run_in_their_order(photo: Path) -> None:
    invert = {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}
    solarize = {"_target_": "torchvision.transforms.v2.RandomSolarize", "threshold": 128, "p": 1.0}
    numbers = Preprocessing((48, 64))
    plain = numbers(photo)
    found = Augmentation(numbers, None, {"solarize": solarize, "skipped": None, "invert": invert})(photo)
    assert torch.equal(found, 255 - torch.where(plain >= 128, 255 - plain, plain))
    assert torch.equal(Augmentation(numbers, None, {"invert": invert, "none": None})(photo), 255 - plain)


@pytest.mark.parametrize("missing", ["scale", "ratio"])
def test_an_incomplete_crop_is_not_blamed_on_the_image(photo: Path, missing: str) -> None:
    crop = {key: value for key, value in CROP.items() if key != missing}
    with pytest.raises(UserError, match=f"data.augment.crop.*{missing}"):
        Augmentation(Preprocessing((8, 8)), crop)(photo)


@pytest.mark.parametrize("channels", [1, 3])
def test_albumentations_draw_by_place(photo: Path, channels: int) -> None:
    """Each of two flips comes in half of the draws, whatever the other does; and the same place draws the same."""
    flips = [{"_target_": f"albumentations.{name}Flip", "p": 0.5} for name in ("Horizontal", "Vertical")]
    compose = {"_target_": "albumentations.Compose", "transforms": flips}
    target = {"_target_": "classifier.data.transforms.Albumentations", "transform": compose}
    numbers = Preprocessing((24, 32), channels=channels)
    augment = Augmentation(numbers, None, {"flips": target})
    plain = numbers(photo)
    forms = [plain, plain.flip(2), plain.flip(1), plain.flip(1, 2)]

    def draw(*place: int) -> int:
        seed_place(0, *place)
        image = augment(photo)
        assert image.dtype == torch.uint8
        (found,) = (number for number, form in enumerate(forms) if torch.equal(image, form))
        return found

    first = [draw(epoch, sample) for epoch in range(4) for sample in range(40)]
    assert [draw(epoch, sample) for epoch in range(4) for sample in range(40)] == first
    assert first[:40] != first[40:80]
    assert min(map(first.count, range(4))) > 20
    assert torch.equal(numbers(photo), plain), "the image itself is not changed"


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (40, 40), (7, 300), (1, 50)])
@pytest.mark.parametrize("image_size", [(32, 32), (24, 48), (48, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_keeps_everything_in_its_shape(
    tmp_path: Path, size: tuple[int, int], image_size: tuple[int, int], channels: int
) -> None:
    path = save(Image.new("RGB", size, (250, 250, 250)), tmp_path / "x.png")
    image = Preprocessing(image_size, "pad", channels=channels)(path)
    assert image.shape == (channels, *image_size)
    inside = image[0] != 128
    assert set(image.flatten().tolist()) <= {128, 250}
    rows, columns = inside.any(1), inside.any(0)
    assert int(inside.sum()) == int(rows.sum()) * int(columns.sum()), "not a rectangle"
    scale = min(image_size[0] / size[1], image_size[1] / size[0])
    assert abs(int(rows.sum()) - max(1, size[1] * scale)) <= 1
    assert abs(int(columns.sum()) - max(1, size[0] * scale)) <= 1
    for frame in (rows, columns):  # in the middle
        before, after = (int(frame.tolist().index(True)), int(frame.tolist()[::-1].index(True)))
        assert abs(before - after) <= 2


AUGMENTS = sorted(path.stem for path in (REPOSITORY / "configs" / "augment").glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize(("channels", "image_size"), [(1, (32, 32)), (3, (24, 40))])
def test_every_config(name: str, channels: int, image_size: tuple[int, int], photo: Path) -> None:
    """uint8 of the wanted size, drawn from the seed alone."""
    size = f"data.image_size=[{image_size[0]},{image_size[1]}]"
    with hydra.initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = plain(hydra.compose("train", [f"augment={name}", "~experiment", size]))["data"]["augment"]
    augment = Augmentation(Preprocessing(image_size, channels=channels), **config)
    seen = []
    for draw in (0, 1, 2, 3, 4, 5, 0):
        seed_place(0, draw)
        seen.append(augment(photo))
    assert all((image.dtype, tuple(image.shape)) == (torch.uint8, (channels, *image_size)) for image in seen)
    assert torch.equal(seen[0], seen[-1])
    different = len({image.contiguous().numpy().tobytes() for image in seen})
    assert different == 1 if name == "none" else different > 1


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        (None, {0: (64, 48)}),
        (32, {0: (32, 32)}),
        ([40, 30], {0: (40, 30)}),
        ([[1, 16], [5, [40, 30]]], {0: (16, 16), 4: (40, 30)}),
        ([[5, [64, 48]], [1, 16]], {0: (16, 16), 4: (64, 48)}),
    ],
)
def test_train_sizes(value: Any, sizes: dict[int, tuple[int, int]]) -> None:
    assert train_sizes(value, (64, 48)) == sizes


def epochs(folder: Path, *numbers: int, **settings: Any) -> list[torch.Tensor]:
    """The training images of these epochs."""
    defaults: dict[str, Any] = {"image_size": 32, "batch_size": 8, "num_workers": 0, "augment": {"crop": CROP}}
    module = ImageFolderDataModule(folder, **{**defaults, **settings})
    module.setup()
    loader = module.train_dataloader()
    assert isinstance(loader, ResumableLoader)
    assert {batch["image"].shape[2:] for batch in module.val_dataloader()} == {(module.preprocessing.image_size)}
    found = []
    for number in numbers:
        loader.epoch_sampler.set_epoch(number)
        found.append(torch.cat([batch["image"] for batch in loader]))
    return found


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"cache": "disk"}])
def test_training_images_grow(settings: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    growing = [[1, 16], [3, [24, 20]], [4, 32]]
    found = epochs(folder, *range(5), train_size=growing, cache_dir=str(tmp_path), **settings)
    assert [tuple(images.shape[2:]) for images in found] == [(16, 16), (16, 16), (24, 20), (32, 32), (32, 32)]
    if not settings:
        assert torch.equal(found[0], epochs(folder, 0, image_size=16)[0])
        assert torch.equal(found[2], epochs(folder, 2, image_size=[24, 20])[0])


@pytest.mark.parametrize(("padding", "message"), [(8, "32x32.*train_size=null"), (None, "larger than input")])
def test_a_transform_with_a_size_of_its_own_is_refused(padding: int | None, message: str, folder: Path) -> None:
    shift = {"_target_": "torchvision.transforms.v2.RandomCrop", "size": 32, "padding": padding}
    augment = {"crop": CROP, "transforms": {"shift": shift}}
    epochs(folder, 0, augment=augment)
    with pytest.raises((UserError, ValueError), match=message):
        epochs(folder, 0, augment=augment, train_size=16)


@pytest.mark.parametrize(
    "value", [65, [[1, 32], [3, [32, 96]]], "small", [16, 16, 16], [], [[1, 16], 32], [[0, 16]], [[1, 16], [1.5, 9]]]
)
def test_bad_train_sizes(value: Any) -> None:
    with pytest.raises(UserError, match=r"data\.train_size="):
        train_sizes(value, (64, 64))
