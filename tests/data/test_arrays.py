import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from classifier.data import ArrayDataModule
from classifier.data.arrays import keep_array
from classifier.data.image import to_uint8
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


def read(path: Path, **options: Any) -> tuple[ArrayDataModule, pd.DataFrame]:
    module = ArrayDataModule(path, cache_dir=str(path.parent / "cache"), **options)
    return module, module.read()


def pixels(module: ArrayDataModule, *items: int) -> list[np.ndarray]:
    values = module.preprocessing.value_range
    return [to_uint8(np.asarray(image), values) for image in module.read_images(np.array(items))]


def brightest(module: ArrayDataModule) -> list[int]:
    return [int(image.max()) for image in pixels(module, 0, 1, 2, 3)]


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
    module, table = read(as_folder(npz) if kind == "folder" else npz)
    assert list(table["label"].cat.categories) == ["blue", "green", "red"]
    assert table["label"].cat.codes.tolist() == [*content["Y_train"], *content["Y_test"]]
    assert table["split"].tolist() == ["train"] * 12 + ["test"] * 3
    assert table["path"][[7, 13]].tolist() == ["X_train/00007", "X_test/00001"]
    wanted = (content["X_train"][0], content["X_train"][11], content["X_test"][0])
    for found, image in zip(pixels(module, 0, 11, 12), wanted, strict=True):
        assert np.array_equal(found, image)


def test_without_a_test_part_all_are_cut_from_training(npz: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate.arrays(npz, per_class=20)
    with np.load(npz) as arrays:
        write(npz, arrays["X_train"], arrays["Y_train"], images_test=arrays["X_test"])
    module, _ = read(npz)
    with caplog.at_level(logging.INFO):
        module.setup()
    assert {part: len(module.rows(part)) for part in module.parts} == {"train": 42, "val": 6, "test": 12}
    assert "X_test" in caplog.text
    assert "images_test" in caplog.text


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
    module, _ = read(write(npz, LAYOUTS[layout](IMAGES)))
    wanted = IMAGES[4] if "3" in layout or layout == "Fortran" else IMAGES[4, :, :, :1]
    assert np.array_equal(pixels(module, 4)[0].reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (np.array([0, 1, 254, 255], np.uint8), [0, 1, 254, 255]),
        (np.array([0, 0, 1, 1], np.uint8), [0, 0, 1, 1]),
        (np.array([False, True, True, False]), [0, 255, 255, 0]),
        (np.array([0, 65535, 257, 514], np.uint16), [0, 255, 1, 2]),
        (np.array([0, 0.5, 1, 0.25], np.float32), [0, 128, 255, 64]),
        (np.array([-0.001, 0.5, 1.002, 0.25], np.float64), [0, 128, 255, 64]),
        (np.array([0, 0.5, 0.6, 0.1], np.float16), [0, 128, 153, 25]),
    ],
)
def test_numbers_become_bytes_by_one_rule_for_all_images(npz: Path, stored: np.ndarray, wanted: list[int]) -> None:
    """Each of the four images has one value alone: by itself it could not be told what that means."""
    module, _ = read(write(npz, np.broadcast_to(stored[:, None, None], (4, 3, 2)), [0, 1, 0, 1]))
    assert brightest(module) == wanted
    assert pixels(module, 0)[0].shape == (3, 2)


@pytest.mark.parametrize("stored", [[-1.0, 1.0], [0.0, 16.0], [0, 200], [0.0, 255.0], [-300, -200]])
def test_a_range_that_no_rule_fits(npz: Path, stored: list[float]) -> None:
    low, high = stored
    images = np.array([low, high, high + 1, low - 1]).reshape(4, 1, 1)
    with pytest.raises(UserError, match=r"X_train .*data\.value_range="):
        read(write(npz, images, [0, 1, 0, 1]))
    assert brightest(read(npz, value_range=stored)[0]) == [0, 255, 255, 0]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([[0], [1], [2], [0], [1], [10]], ["0", "1", "2", "0", "1", "10"]),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 10.0], ["0", "1", "2", "0", "1", "10"]),
        (np.array([9, 1, 2**63 - 1, 0, 1, 10], np.uint64), ["9", "1", str(2**63 - 1), "0", "1", "10"]),
        (np.array([0, 1, 2048, 0, 1, 10], np.float16), ["0", "1", "2048", "0", "1", "10"]),
        ([True, False, True, True, True, True], ["1", "0", "1", "1", "1", "1"]),
        (np.eye(6)[[1, 0, 2, 5, 3, 4]], ["1", "0", "2", "5", "3", "4"]),
        (np.eye(6, dtype=np.uint8)[[1, 0, 2, 5, 3, 4]], ["1", "0", "2", "5", "3", "4"]),
        (["b", "a", "é", "a", "b", "a"], ["b", "a", "é", "a", "b", "a"]),
        ([[b"b"], [b"a"], [b"c"], [b"a"], [b"b"], [b"a"]], ["b", "a", "c", "a", "b", "a"]),
    ],
)
def test_labels(npz: Path, labels: object, wanted: list[str]) -> None:
    _, table = read(write(npz, labels=labels))
    assert table["label"].tolist() == wanted
    assert list(table["label"].cat.categories) == sorted(set(wanted), key=lambda name: (len(name), name))


def test_names_of_classes(npz: Path) -> None:
    write(npz, labels=LABELS, classes=["z", "y", "x", "w"], label_names=[b"one", b"two", b"three"])
    assert list(read(npz)[1]["label"].cat.categories) == ["z", "y", "x", "w"]
    assert read(npz, classes_key="label_names")[1]["label"].tolist() == ["one", "two", "three"] * 2
    assert list(read(npz, classes_key=None)[1]["label"].cat.categories) == ["0", "1", "2"]
    assert read(npz, classes=["x", "y", "z"])[1]["label"].cat.codes.tolist() == [2, 1, 0] * 2
    with pytest.raises(UserError, match="'z'"):
        read(npz, classes=["x", "y"])
    write(npz, labels=["a", "b", "q", "a", "b", "q"], classes=["b", "a"])
    with pytest.raises(UserError, match="'q'"):
        read(npz)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x_train": IMAGES, "X_train": None}, {}, r"'X_train'.*data\.x_train="),
        ({"Y_train": None}, {}, r"'Y_train'.*data\.y_train="),
        ({"X_test": IMAGES}, {}, r"'Y_test'.*data\.y_test="),
        ({}, {"x_test": "images", "y_test": "labels"}, r"'images'.*data\.x_test="),
        ({}, {"y_test": None}, r"data\.y_"),
        ({}, dict.fromkeys(("x_train", "y_train", "x_test", "y_test")), r"data\.x_train="),
        ({"X_train": IMAGES.reshape(6, -1)}, {}, r"\(6, 60\).*data\.x_train="),
        ({"X_train": IMAGES[..., [0, 1]]}, {}, r"\(6, 5, 4, 2\)"),
        ({"Y_train": LABELS[:5]}, {}, r"6 images.* 5 labels.*data\.x_train=.*data\.y_train="),
        ({"Y_train": LABELS[:0]}, {}, r"\(0,\)"),
        ({"Y_train": [0, 1, -1, 0, 1, 2]}, {}, "-1 at 2"),
        ({"Y_train": [0, 1.5, 1, 0, 1, 2]}, {}, "1.5 at 1"),
        ({"Y_train": [0, 1, np.nan, 0, 1, 2]}, {}, "nan at 2"),
        ({"Y_train": [0, 1, np.inf, 0, 1, 2]}, {}, "inf at 2"),
        ({"Y_train": [0, 1, 1e300, 0, 1, 2]}, {}, r"1e\+300 at 2"),
        ({"Y_train": np.array([0, 1, 2**63 + 1, 0, 1, 2], np.uint64)}, {}, f"{2**63 + 1} at 2"),
        ({"Y_train": ["a", "b", "\ud800", "a", "b", "b"]}, {}, "Y_train .*surrogates"),
        ({"Y_train": [[1, 0], [0, 1], [1, 1], [0, 1], [0, 1], [0, 1]]}, {}, "at 2"),
        ({"Y_train": np.zeros(6, complex)}, {}, "complex128"),
        ({"Y_train": np.array([0, "a", None] * 2, object)}, {}, r"Y_train .*Python objects.*dtype=str"),
        ({"X_train": np.array([IMAGES[0], IMAGES[1, :2]], object)}, {}, r"X_train .*Python objects.*np\.stack"),
        ({"X_train": np.zeros((6, 2, 2), "U1")}, {}, "<U1"),
        ({"X_train": np.full((6, 2, 2), np.nan)}, {}, "nan"),
        ({"classes": ["a", "b"]}, {}, r"label 2.*data\.classes_key=null"),
        ({"classes": ["a", "b", "a"]}, {}, r"data\.classes_key=null"),
        ({"classes": np.array(["a", "b", "c"], object)}, {}, "classes .*Python objects"),
        ({"classes": [b"a", b"\xff", b"c"]}, {}, "utf-8"),
        *[({}, {"value_range": wrong}, r"data\.value_range=") for wrong in ([1, 0], [0, 1, 2], 5, ["a", "b"])],
        ({"X_train": np.ones((6, 2, 2), bool)}, {"value_range": [0, 255]}, r"bool.*data\.value_range=null"),
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
    with pytest.raises(UserError, match=r"set.npz"):
        read(npz)
    assert [path for path in npz.parent.glob("cache/arrays/*X_train*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize("content", [b"hello", None])
def test_a_folder_with_a_damaged_array(npz: Path, content: bytes | None) -> None:
    path = as_folder(write(npz)) / "X_train.npy"
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(UserError, match="X_train of "):
        read(path.parent)


@pytest.mark.parametrize("name", ["none.npz", "one.npy", "empty"])
def test_a_wrong_root(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(UserError, match=rf"{name} .*data\.root="):
        read(tmp_path / name)


def test_arrays_are_unpacked_once_for_a_file_as_it_is(npz: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate.arrays(npz, per_class=4, compressed=True)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            module, _ = read(npz)
    assert len([message for message in caplog.messages if "unpacking X_train" in message]) == 1
    first = pixels(module, 0)[0].copy()
    with np.load(npz) as arrays:
        changed = {**arrays, "X_train": 255 - arrays["X_train"], "X_val": IMAGES}
    np.savez_compressed(npz, allow_pickle=True, **changed)
    assert np.array_equal(pixels(read(npz)[0], 0)[0], 255 - first)


def test_a_damaged_array_in_the_cache_is_written_again(npz: Path) -> None:
    first = pixels(read(write(npz))[0], 0)[0].copy()
    (unpacked,) = npz.parent.glob("cache/arrays/*X_train*.npy")
    whole = unpacked.read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], whole[:10] + b"(" + whole[11:], whole.replace(b"|u1", b"|i1")):
        unpacked.write_bytes(damaged)
        assert np.array_equal(pixels(read(npz)[0], 0)[0], first)
        kept = keep_array(IMAGES, "pixels", npz.parent)
        assert np.array_equal(np.load(kept), IMAGES)
        kept.write_bytes(damaged[:50])


def test_a_worker_gets_places_not_pixels(npz: Path) -> None:
    module, _ = read(generate.arrays(npz, per_class=40))
    wanted = pixels(module, 120)[0].copy()  # opens it
    sent = pickle.dumps(module)
    assert len(sent) < 5000
    assert np.array_equal(pixels(pickle.loads(sent), 120)[0], wanted)
    module.setup()
    assert isinstance(module.image(0), np.memmap | np.ndarray)
    assert np.shares_memory(pixels(module, 120)[0], pixels(module, 120)[0])  # not copied: a view of the file
