import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.data import arrays as array_store
from classifier.data.arrays import ArrayFiles, ArraySource, ArrayStore, kept
from classifier.data.check import check_images
from classifier.data.modules import ArrayDataModule
from classifier.data.samples import SPLITS, Samples
from classifier.errors import UserError
from tests import generate

Arrays = dict[str, np.ndarray]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(path: Path, images: object = IMAGES, labels: object = LABELS, **more: Any) -> Path:
    """An .npz file of training arrays; None leaves one out."""
    content = {"X_train": images, "Y_train": labels, **more}
    np.savez(
        path, allow_pickle=True, **{name: np.asarray(array) for name, array in content.items() if array is not None}
    )
    return path


def read(path: Path, **options: Any) -> Samples:
    samples, problems = ArraySource(path, cache_dir=path.parent / "cache", **options).read()
    assert problems == []
    return samples


def pixels(samples: Samples, row: int) -> np.ndarray:
    image = samples.image(row)
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.uint8
    assert isinstance(samples.store, ArrayStore)
    assert samples.store.size(row) == (image.shape[1], image.shape[0])
    return image


def names(samples: Samples) -> list[str]:
    return [samples.classes[label] for label in samples.labels]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return tmp_path / "set.npz"


def as_folder(path: Path) -> Path:
    with np.load(path) as arrays:
        for name in arrays.files:
            np.save(path.parent / f"{name}.npy", arrays[name])
    return path.parent


@pytest.mark.parametrize("kind", ["plain", "compressed", "folder"])
def test_a_file_or_a_folder(npz: Path, kind: str) -> None:
    generate.arrays(npz, per_class=4, compressed=kind == "compressed")
    with np.load(npz) as arrays:
        content = dict(arrays)
    samples = read(as_folder(npz) if kind == "folder" else npz)
    assert samples.classes == ("blue", "green", "red")
    assert samples.labels.tolist() == [*content["Y_train"], *content["Y_test"]]
    assert [SPLITS[split] for split in samples.splits] == ["train"] * 12 + ["test"] * 3
    assert samples.relative_path(7) == "X_train/00007"
    assert samples.relative_path(13) == "X_test/00001"
    for row, wanted in ((0, content["X_train"][0]), (11, content["X_train"][11]), (12, content["X_test"][0])):
        assert np.array_equal(pixels(samples, row), wanted)


def test_names_of_arrays(npz: Path) -> None:
    write(npz, None, None, a=IMAGES, b=LABELS, c=IMAGES[:2], d=LABELS[:2])
    samples = read(npz, x_train="a", y_train="b", x_val="c", y_val="d", x_test=None, y_test=None)
    assert [SPLITS[split] for split in samples.splits] == ["train"] * 6 + ["val"] * 2


def test_without_a_test_part_all_are_cut_from_training(npz: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate.arrays(npz, per_class=20)
    with np.load(npz) as arrays:
        write(npz, arrays["X_train"], arrays["Y_train"], images_test=arrays["X_test"])
    module = ArrayDataModule(npz)
    with caplog.at_level(logging.INFO):
        module.setup()
    assert {part: len(rows) for part, rows in module.split.items()} == {"train": 42, "val": 6, "test": 12}
    assert "no X_test: the test part is cut from training (not used: images_test)" in caplog.text


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "N, H, W": lambda images: images[..., 0],
    "N, H, W, 1": lambda images: images[..., :1],
    "N, H, W, 3": lambda images: images,
    "N, 3, H, W": lambda images: images.transpose(0, 3, 1, 2),
    "N, 1, H, W": lambda images: images[..., :1].transpose(0, 3, 1, 2),
    "Fortran": np.asfortranarray,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(npz: Path, layout: str) -> None:
    samples = read(write(npz, LAYOUTS[layout](IMAGES)))
    wanted = IMAGES[4] if "3" in layout or layout == "Fortran" else IMAGES[4, :, :, :1]
    assert np.array_equal(pixels(samples, 4).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (np.array([0, 1, 254, 255], np.uint8), [0, 1, 254, 255]),
        (np.array([0, 0, 1, 1], np.uint8), [0, 0, 1, 1]),
        (np.array([False, True, True, False]), [0, 255, 255, 0]),
        (np.array([0, 255, 100, 64], np.int64), [0, 255, 100, 64]),
        (np.array([0, 1023, 100, 4], np.uint16), [0, 255, 25, 1]),
        (np.array([0, 4095, 2048, 16], np.uint16), [0, 255, 128, 1]),
        (np.array([0, 65535, 257, 514], np.uint16), [0, 255, 1, 2]),
        (np.array([0, 0.5, 1, 0.25], np.float32), [0, 128, 255, 64]),
        (np.array([-0.001, 0.5, 1.002, 0.25], np.float64), [0, 128, 255, 64]),
        (np.array([0, 0.5, 0.6, 0.1], np.float16), [0, 128, 153, 25]),
        (np.array([0, 1.4, 254.6, 100], np.float32), [0, 1, 255, 100]),
    ],
)
def test_numbers_become_bytes_by_one_rule_for_all_images(npz: Path, stored: np.ndarray, wanted: list[int]) -> None:
    """Each of the four images has one value alone: by itself it could not be told what that means."""
    images = np.broadcast_to(stored[:, None, None], (4, 3, 2))
    for chunk in (1, 1 << 24):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(array_store, "CHUNK", chunk)
            samples = read(write(npz, images, [0, 1, 0, 1]))
        assert [int(pixels(samples, row).max()) for row in range(4)] == wanted
        assert pixels(samples, 0).shape == (3, 2)


def test_parts_share_their_range(npz: Path) -> None:
    dark = np.full((2, 3, 2), 100, np.uint16)
    samples = read(write(npz, dark, [0, 1], X_test=dark * 600, Y_test=[0, 1]))
    assert [int(pixels(samples, row).max()) for row in range(4)] == [0, 0, 233, 233]


def test_a_given_range(npz: Path) -> None:
    images = np.array([-1, 0, 1, 9], np.float32).reshape(4, 1, 1)
    samples = read(write(npz, images, [0, 1, 0, 1]), value_range=[-1, 1])
    assert [int(pixels(samples, row).max()) for row in range(4)] == [0, 128, 255, 255]


@pytest.mark.parametrize(
    "stored", [[-1.0, 1.0], [0.0, 16.0], [0, 16], [-2.1, 2.6], [0.0, 300.0], [-5, 100], [0, 70000], [-300, -200]]
)
def test_a_range_that_no_rule_fits(npz: Path, stored: list[float]) -> None:
    images = np.array(stored).reshape(2, 1, 1)
    with pytest.raises(UserError, match=r"X_train .* has values from .* say .* data\.value_range=\["):
        read(write(npz, images, [0, 1]))
    assert len(read(npz, value_range=[min(stored), max(stored)])) == 2


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([[0], [1], [2], [0], [1], [10]], ["0", "1", "2", "0", "1", "10"]),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 10.0], ["0", "1", "2", "0", "1", "10"]),
        ([True, False, True, True, True, True], ["1", "0", "1", "1", "1", "1"]),
        (np.eye(6)[[1, 0, 2, 5, 3, 4]], ["1", "0", "2", "5", "3", "4"]),
        (np.eye(6, dtype=np.uint8)[[1, 0, 2, 5, 3, 4]], ["1", "0", "2", "5", "3", "4"]),
        (["b", "a", "é", "a", "b", "a"], ["b", "a", "é", "a", "b", "a"]),
        ([[b"b"], [b"a"], [b"c"], [b"a"], [b"b"], [b"a"]], ["b", "a", "c", "a", "b", "a"]),
    ],
)
def test_labels(npz: Path, labels: object, wanted: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        samples = read(write(npz, labels=labels))
    assert names(samples) == wanted
    assert samples.classes == tuple(sorted(set(wanted), key=lambda name: (len(name), name)))
    assert ("one-hot labels of 6 classes" in caplog.text) == isinstance(labels, np.ndarray)


def test_names_of_classes(npz: Path) -> None:
    write(npz, labels=LABELS, classes=["z", "y", "x", "w"], label_names=[b"one", b"two", b"three"])
    assert read(npz).classes == ("z", "y", "x", "w")
    assert names(read(npz, classes_key="label_names")) == ["one", "two", "three"] * 2
    assert read(npz, classes_key=None).classes == ("0", "1", "2")
    samples, _ = ArraySource(npz).read(["x", "y", "z"])
    assert names(samples) == ["z", "y", "x"] * 2
    with pytest.raises(UserError, match="Y_train has the class 'z' that training does not know"):
        ArraySource(npz).read(["x", "y"])


def test_a_class_that_training_lacks(npz: Path) -> None:
    with pytest.raises(UserError, match=r"Y_test has the class '7' that training does not know"):
        read(write(npz, X_test=IMAGES[:1], Y_test=[7]))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x_train": IMAGES, "X_train": None}, {}, r"no array 'X_train' but Y_train, x_train: use data\.x_train="),
        ({"Y_train": None}, {}, r"no array 'Y_train'.*data\.y_train="),
        ({"X_test": IMAGES}, {}, r"no array 'Y_test'.*data\.y_test="),
        ({}, {"x_test": "images", "y_test": "labels"}, r"no array 'images'.*data\.x_test="),
        ({}, {"y_test": None}, r"data\.y_test=null, but data\.x_test is not"),
        ({}, dict.fromkeys(("x_train", "y_train")), "leaves no arrays"),
        ({"X_train": IMAGES.reshape(6, -1)}, {}, r"X_train has the shape \(6, 60\): images are .*data\.x_train="),
        ({"X_train": IMAGES[..., [0, 1]]}, {}, r"shape \(6, 5, 4, 2\): images are"),
        ({"X_train": IMAGES[:0], "Y_train": LABELS[:0]}, {}, r"X_train is empty, its shape is \(0, 5, 4, 3\)"),
        ({"Y_train": LABELS[:5]}, {}, "X_train has 6 images and Y_train 5 labels"),
        ({"Y_train": LABELS[:0]}, {}, r"Y_train has the shape \(0,\)"),
        ({"Y_train": np.zeros((6, 2, 2))}, {}, r"Y_train has the shape \(6, 2, 2\): labels are"),
        ({"Y_train": [0, 1, -1, 0, 1, 2]}, {}, "Y_train has the label -1 at 2: labels count from 0"),
        ({"Y_train": [0, 1.5, 1, 0, 1, 2]}, {}, r"Y_train has the label 1.5 at 1: labels are integers"),
        ({"Y_train": [0, 1, np.nan, 0, 1, 2]}, {}, "Y_train has the label nan at 2"),
        ({"Y_train": np.full((6, 3), 1 / 3)}, {}, "row 0 is not a single 1 among zeros"),
        ({"Y_train": [[1, 0], [0, 1], [1, 1], [0, 1], [0, 1], [0, 1]]}, {}, "row 2 is not a single 1"),
        ({"Y_train": [[1, 0], [0, 0], [1, 0], [0, 1], [0, 1], [0, 1]]}, {}, "row 1 is not a single 1"),
        ({"Y_train": [["a", "b"]] * 6}, {}, "row 0 is not a single 1"),
        ({"Y_train": np.zeros(6, complex)}, {}, "Y_train is of complex128: labels are integers or text"),
        ({"Y_train": np.array([0, "a", None] * 2, object)}, {}, r"Y_train .* holds Python objects.*dtype=str"),
        ({"X_train": np.array([IMAGES[0], IMAGES[1, :2]], object)}, {}, r"X_train .* holds Python objects.*np\.stack"),
        ({"X_train": np.zeros((6, 2, 2), "U1")}, {}, "X_train is of <U1: images are of numbers"),
        ({"X_train": np.full((6, 2, 2), np.nan)}, {}, "X_train has values that are not finite"),
        ({"classes": ["a", "b"]}, {}, "Y_train has the label 2, but classes names 2 classes only"),
        ({"classes": ["a", "b", "a"]}, {}, "classes names a class twice"),
        ({"classes": [["a", "b", "c"]]}, {}, r"classes has the shape \(1, 3\): class names are \(K,\)"),
        ({"classes": np.array(["a", "b", "c"], object)}, {}, "classes .* holds Python objects"),
        ({"classes": [b"a", b"\xff", b"c"]}, {}, "not in UTF-8"),
        ({}, {"value_range": [1, 0]}, r"data\.value_range=\[1, 0\] must be two numbers"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(npz: Path, arrays: Arrays, options: dict[str, Any], message: str) -> None:
    content: dict[str, Any] = {"X_train": IMAGES, "Y_train": LABELS, **arrays}
    write(npz, content.pop("X_train"), content.pop("Y_train"), **content)
    with pytest.raises(UserError, match=message):
        read(npz, **options)


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    else:  # in the middle of the first member's numbers
        at = content.index(b"X_train") + 200
        path.write_bytes(content[:at] + bytes(byte ^ 255 for byte in content[at : at + 50]) + content[at + 50 :])


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "changed"])
def test_a_damaged_file(npz: Path, kind: str) -> None:
    generate.arrays(npz, per_class=8, compressed=True)
    damage(npz, kind)
    with pytest.raises(UserError, match=r"set.npz is cut off, damaged or no .npz file .*: copy or save it again"):
        read(npz)
    assert list(npz.parent.glob("cache/arrays/*X_train*.npy")) == []
    assert list(npz.parent.glob("cache/arrays/*.part")) == list(npz.parent.glob("cache/arrays/.*.part")) == []


def test_a_folder_with_an_array_that_is_cut_off(npz: Path) -> None:
    folder = as_folder(write(npz))
    path = folder / "X_train.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"X_train of .* is cut off \(350 of 360 bytes\)"):
        read(folder)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"X_train of .* is damaged"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", r"none.npz does not exist: .*data\.root="),
        ("one.npy", r"one.npy is one array: use data\.root="),
        ("empty", r"empty has no arrays: .*data\.root="),
    ],
)
def test_a_wrong_root(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_compressed_arrays_are_unpacked_once_for_a_file_as_it_is(npz: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate.arrays(npz, per_class=4, compressed=True)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            read(npz)
    assert len([message for message in caplog.messages if "unpacking X_train" in message]) == 1
    first = pixels(read(npz), 0).copy()
    generate.arrays(npz, per_class=8, compressed=True, X_val=IMAGES)
    with np.load(npz) as arrays:
        changed = {**arrays, "X_train": 255 - arrays["X_train"]}
    np.savez_compressed(npz, allow_pickle=True, **changed)
    assert np.array_equal(pixels(read(npz), 0), 255 - first)


@pytest.mark.parametrize("length", [0, 50, -1])
def test_a_damaged_unpacked_array_is_unpacked_again(npz: Path, length: int) -> None:
    generate.arrays(npz, per_class=4, compressed=True)
    first = pixels(read(npz), 0).copy()
    (unpacked,) = npz.parent.glob("cache/arrays/*X_train*.npy")
    unpacked.write_bytes(unpacked.read_bytes()[:length])
    assert np.array_equal(pixels(read(npz), 0), first)


def test_a_damaged_kept_array_is_kept_again(tmp_path: Path) -> None:
    for length in (0, 50, -1, None):
        found = kept(IMAGES, "pixels", tmp_path)
        assert np.array_equal(found.open(), IMAGES)
        found.path.write_bytes(found.path.read_bytes()[:length])


def test_no_room_to_unpack(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate.arrays(npz, per_class=4, compressed=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    message = r"cannot write .* are needed, .* free\): name another place with data\.cache_dir="
    with pytest.raises(UserError, match=message):
        read(npz)


def test_the_quick_check_reads_no_image(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = read(write(npz, IMAGES.astype(np.float32)))

    def refuse(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(array_store, "to_uint8", refuse)
    assert check_images(samples, "quick")[1] == []
    assert len(check_images(samples, "full")[1]) == 6


@pytest.mark.parametrize("compressed", [False, True])
def test_a_worker_gets_places_not_pixels(npz: Path, compressed: bool) -> None:
    generate.arrays(npz, per_class=40, compressed=compressed)
    samples = read(npz)
    wanted = pixels(samples, 120).copy()  # opens it
    sent = pickle.dumps(samples.store)
    assert len(sent) < 2000
    received = pickle.loads(sent)
    assert np.array_equal(received.read(120), wanted)
    array = ArrayFiles(npz, npz.parent / "cache").find("X_train", "x_train").open()
    assert isinstance(array, np.memmap)


def test_batches(npz: Path) -> None:
    module = ArrayDataModule(generate.arrays(npz, per_class=8), image_size=16, batch_size=6, num_workers=0)
    module.setup()
    batch = next(iter(module.eval_dataloader("test")))
    with np.load(npz) as arrays:
        assert np.array_equal(batch["image"].numpy().transpose(0, 2, 3, 1), arrays["X_test"])
        assert batch["label"].tolist() == arrays["Y_test"].tolist()
