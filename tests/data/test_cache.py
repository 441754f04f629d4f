import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classifier.data import AnnotationCropDataModule, ImageFolderDataModule
from classifier.data.cache import cached
from classifier.data.image import decode, everything
from classifier.data.loader import ImageDataset, Images
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from tests import generate
from tests.data.tables import make_table

RANDOM_CROP = {
    "crop": {"scale": [0.3, 1.0], "ratio": [0.75, 1.33]},
    "transforms": {"flip": {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.5}},
}


def ready(root: Path, cache_dir: Path, cache: str = "disk", **settings: Any) -> ImageFolderDataModule:
    defaults = {"image_size": 16, "batch_size": 8, "num_workers": 0, "augment": RANDOM_CROP}
    module = ImageFolderDataModule(root, cache=cache, cache_dir=str(cache_dir), **{**defaults, **settings})
    module.setup()
    return module


def epoch(module: Any, number: int = 0) -> torch.Tensor:
    """The training images of an epoch, in the table's order."""
    loader = module.train_dataloader()
    loader.epoch_sampler.set_epoch(number)
    batches = list(loader)
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    images: torch.Tensor = torch.cat([batch["image"] for batch in batches])[order]
    return images


def files(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "pixels").iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(("channels", "num_workers"), [(1, 0), (3, 0), (3, 2)])
def test_crops_from_the_cache_are_those_from_the_files(
    folder: Path, tmp_path: Path, channels: int, num_workers: int
) -> None:
    # nothing is shrunk, and the JPEGs are too small to be decoded at half their size
    whole: dict[str, Any] = {"cache_size": 1000, "image_size": 32, "channels": channels, "num_workers": num_workers}
    direct, stored = ready(folder, tmp_path, "none", **whole), ready(folder, tmp_path, **whole)
    for number in (0, 1):
        assert torch.equal(epoch(direct, number), epoch(stored, number))
    assert not torch.equal(epoch(stored, 0), epoch(stored, 1))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_validation_is_what_evaluation_reads(folder: Path, tmp_path: Path, resize: str) -> None:
    settings: dict[str, Any] = {"resize": resize, "crop_pct": 0.8, "image_size": [24, 16]}
    direct, stored = ready(folder, tmp_path, "none", **settings), ready(folder, tmp_path, **settings)
    for part in ("val", "test"):
        for one, other in zip(direct.eval_dataloader(part), stored.eval_dataloader(part), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "index"))


def test_boxes_are_cut_before(annotated: Path, tmp_path: Path) -> None:
    modules = []
    settings: dict[str, Any] = {"image_size": 16, "batch_size": 8, "cache_size": 30, "cache_dir": str(tmp_path)}
    for cache in ("none", "disk"):
        module = AnnotationCropDataModule(annotated, num_workers=0, cache=cache, **settings)
        module.setup()
        modules.append(epoch(module))
    assert torch.equal(*modules)
    largest = max(path.stat().st_size for path in tmp_path.rglob("pixels.npy"))
    assert largest < 60 * 30 * 30 * 3 + 4000, "more than the boxes is kept"


def test_folds_share_the_training_images(folder: Path, tmp_path: Path) -> None:
    for fold in range(3):
        module = ready(folder, tmp_path, fold=fold, num_folds=3)
        assert torch.equal(epoch(module), epoch(ready(folder, tmp_path / str(fold), fold=fold, num_folds=3)))
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("fate", ["cut", "gone"])
def test_an_image_that_breaks_after_the_check_leaves_no_cache(folder: Path, tmp_path: Path, fate: str) -> None:
    root = generate.copy(folder, tmp_path / "photos")
    module = ready(root, tmp_path / "kept")
    broken = module.image(int(module.rows("train")[0]))
    assert isinstance(broken, Path)
    broken.write_bytes(broken.read_bytes()[:300])
    if fate == "gone":
        broken.unlink()
    with pytest.raises(UserError, match=broken.name):
        module.train_dataloader()
    assert not list((tmp_path / "kept").glob("pixels/*_*[!k]"))


def test_an_interrupted_build_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert len(files(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("classifier.data.transforms.decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ready(folder, tmp_path).train_dataloader()
    assert files(tmp_path) == []


def test_a_cache_in_the_data_is_refused(folder: Path, tmp_path: Path) -> None:
    """The next run would take it for a class."""
    root = generate.copy(folder, tmp_path / "photos")
    module = ready(root, root / "cache")
    with pytest.raises(UserError, match=r"data\.cache_dir="):
        module.train_dataloader()
    assert sorted(path.name for path in root.iterdir()) == sorted(generate.CLASSES)


def test_a_spawned_worker_gets_no_copy(folder: Path, tmp_path: Path) -> None:
    module = ready(folder, tmp_path)
    dataset = module.train_dataloader().dataset
    assert isinstance(dataset, ImageDataset)
    stored = pickle.dumps(dataset.images.read_images)
    assert len(stored) < 1000
    read = pickle.loads(stored)
    for item, row in enumerate(module.rows("train").tolist()):
        assert np.array_equal(read(np.array([item]))[0], np.asarray(dataset.images.picture(row)))


def test_a_wide_image_size_is_not_enlarged_from_the_cache(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        generate.save(generate.picture("red", (100, 100)), tmp_path / "photos" / name)
    settings: dict[str, Any] = {"image_size": [16, 64], "val_fraction": 0.0, "test_fraction": 0.0, "batch_size": 2}
    dataset = ready(tmp_path / "photos", tmp_path, **settings).train_dataloader().dataset
    assert dataset.images.picture(0).shape[1] >= 64  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (90, 90), (20, 300)])
def test_the_short_side_is_shrunk_and_never_enlarged(tmp_path: Path, size: tuple[int, int]) -> None:
    path = generate.save(generate.picture("red", size), tmp_path / "photos" / "x.png")
    images = Images.of(make_table([path.name]), path.parent)
    for side in (32, 90, 500):
        pixels = cached(images, np.array([0]), Preprocessing((8, 8)), tmp_path, side).picture(0)
        assert isinstance(pixels, np.ndarray)
        height, width, _ = pixels.shape
        assert min(height, width) == min(side, *size)
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
        assert np.array_equal(decode(path, None, everything, (height, width)).permute(1, 2, 0), pixels)


def test_a_later_run_finds_it_again_and_only_what_is_the_same(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", per_class=6)
    first = epoch(ready(root, tmp_path))
    (path,) = files(tmp_path)
    written = path.stat().st_mtime_ns
    assert torch.equal(first, epoch(ready(root, tmp_path)))
    assert [(found, found.stat().st_mtime_ns) for found in files(tmp_path)] == [(path, written)]
    generate.save(generate.picture("white"), root / "red" / "000.jpg")
    assert torch.equal(epoch(ready(root, tmp_path)), epoch(ready(root, tmp_path / "other")))
    epoch(ready(root, tmp_path, cache_size=20))
    epoch(ready(root, tmp_path, interpolation="bicubic"))
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize("name", ["table.npy", "pixels.npy"])
@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_damaged_one_is_rebuilt(
    folder: Path, tmp_path: Path, name: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = epoch(ready(folder, tmp_path))
    (path,) = files(tmp_path)
    (path / name).write_bytes((path / name).read_bytes()[:length])
    for damaged in (True, False):
        caplog.clear()
        assert torch.equal(epoch(ready(folder, tmp_path)), wanted)
        assert [str(path) in line for line in caplog.text.splitlines() if "WARNING" in line] == [True] * damaged
    assert files(tmp_path) == [path]


def test_a_place_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("file/cache", "full"):
        with pytest.raises(UserError, match=r"data\.cache_dir="):
            ready(folder, tmp_path / place).train_dataloader()
        # the second is a disk that has no room
        error = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(os, "posix_fallocate", lambda *_, error=error: (_ for _ in ()).throw(error), raising=False)
    assert files(tmp_path / "full") == []
