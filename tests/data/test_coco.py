import copy
import json
from pathlib import Path
from typing import Any

import pytest

from classifier.data.coco import CocoSource
from classifier.data.modules import CocoDataModule
from classifier.data.samples import SPLITS, Problem, Samples
from classifier.errors import UserError
from tests import generate
from tests.data.test_folder import touch

IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": "x2", "file_name": "sub/b.jpg"}, {"id": 3, "file_name": "empty.jpg"}]
CATEGORIES = [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 9, "name": "bird"}]
BOXES: list[dict[str, Any]] = [
    {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 10]},
    {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0.4, 3.6, 20.2, 20.4], "iscrowd": 0},
    {"id": 3, "image_id": 1, "category_id": 9, "bbox": [0, 0, 80, 60], "iscrowd": 1},
    {"id": 4, "image_id": "x2", "category_id": 2, "bbox": [5, 5, 5, 5]},
]
CONTENT: dict[str, Any] = {"images": IMAGES, "annotations": BOXES, "categories": CATEGORIES}


def write(root: Path, content: object = CONTENT, name: str = "instances.json") -> Path:
    touch(root, "images/a.jpg", "images/sub/b.jpg", "images/empty.jpg")
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def changed(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The content with one more entry in a list."""
    content = copy.deepcopy(CONTENT)
    content[key].append(entry)
    return content


def read(root: Path, **options: Any) -> tuple[list[tuple[str, str, object]], list[Problem]]:
    samples, problems = CocoSource(root, **{"annotations": "instances.json", **options}).read()
    return listed(samples), problems


def listed(samples: Samples) -> list[tuple[str, str, object]]:
    return [
        (samples.relative_path(row), samples.classes[samples.labels[row]], samples.box(row))
        for row in range(len(samples))
    ]


DOG = ("images/a.jpg", "dog", (1, 2, 11, 12))
CAT = ("images/a.jpg", "cat", (0, 3, 21, 24))
B = ("images/sub/b.jpg", "cat", (5, 5, 10, 10))
CROWD = ("images/a.jpg", "bird", (0, 0, 80, 60))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [DOG, CAT, B]),
        ({"objects": "largest"}, [CAT, B]),
        ({"objects": "first"}, [DOG, B]),
        ({"crowd": "keep"}, [DOG, CAT, CROWD, B]),
        ({"margin": 1.0, "objects": "first"}, [(*DOG[:2], (-9, -8, 21, 22)), (*B[:2], (0, 0, 15, 15))]),
    ],
)
def test_which_objects(tmp_path: Path, options: dict[str, Any], wanted: list[tuple[str, str, object]]) -> None:
    assert read(write(tmp_path), **options) == (wanted, [])


def test_images_without_a_box_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write(tmp_path))
    assert "1 images have no box" in caplog.text


def test_classes_are_those_that_occur(tmp_path: Path) -> None:
    write(tmp_path)
    assert CocoSource(tmp_path, annotations="instances.json").read()[0].classes == ("cat", "dog")
    samples, _ = CocoSource(tmp_path, annotations="instances.json").read(["dog", "bird", "cat"])
    assert samples.labels.tolist() == [0, 2, 2]
    with pytest.raises(UserError, match="has the category 'dog' that training does not know"):
        CocoSource(tmp_path, annotations="instances.json").read(["cat"])


def parts(root: Path) -> dict[str, str]:
    """A file for each of two parts, with the same ids for different images and categories."""
    write(root, {**CONTENT, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": BOXES[:2]}, "train.json")
    categories = [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}]
    other = {"images": [{"id": 1, "file_name": "sub/b.jpg"}], "annotations": BOXES[:1], "categories": categories}
    write(root, other, "val.json")
    return {"train": "train.json", "val": "val.json"}


@pytest.mark.parametrize("by_part", [False, True])
def test_a_file_for_each_part(tmp_path: Path, by_part: bool) -> None:
    files = parts(tmp_path)
    images = {"train": "images", "val": "images"} if by_part else "images"
    samples, problems = CocoSource(tmp_path, annotations=files, images=images).read()
    assert problems == []
    assert [SPLITS[split] for split in samples.splits] == ["train", "train", "val"]
    assert listed(samples) == [DOG, CAT, ("images/sub/b.jpg", "cat", (1, 2, 11, 12))]


def test_an_image_in_two_parts(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=r"images/a.jpg is in train and in test: .*data\.annotations"):
        CocoSource(tmp_path, annotations=dict.fromkeys(("train", "test"), "instances.json")).read()


def test_a_category_that_training_lacks(tmp_path: Path) -> None:
    files = parts(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"][0]["name"] = "bird"
    write(tmp_path, content, "val.json")
    with pytest.raises(UserError, match="'bird' that training does not know"):
        CocoSource(tmp_path, annotations=files).read()


@pytest.mark.parametrize(
    ("entry", "path", "reason"),
    [
        ({"image_id": 1, "category_id": 77, "bbox": [0, 0, 1, 1]}, "images/a.jpg", "the category_id 77 is no category"),
        ({"image_id": 1, "category_id": [5], "bbox": [0, 0, 1, 1]}, "images/a.jpg", "the category_id [5] is no"),
        ({"image_id": 8, "category_id": 5, "bbox": [0, 0, 1, 1]}, "instances.json", "the image_id 8 is no image"),
        ({"image_id": 1, "category_id": 5}, "images/a.jpg", "no bbox"),
        ({"image_id": 1, "bbox": [0, 0, 1, 1]}, "images/a.jpg", "no category_id"),
        ({"image_id": 1, "category_id": 5, "bbox": [0, 0, 1]}, "images/a.jpg", "bbox [0, 0, 1] is not of four numbers"),
        ({"image_id": 1, "category_id": 5, "bbox": [0, 0, "w", 1]}, "images/a.jpg", "not of four numbers"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, 0, 1]}, "images/a.jpg", "empty box: x 3 to 3"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, float("nan"), 1]}, "images/a.jpg", "not finite"),
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, entry: dict[str, Any], path: str, reason: str) -> None:
    found, (problem,) = read(write(tmp_path, changed("annotations", entry)))
    assert found == [DOG, CAT, B]
    assert problem.path == path
    assert problem.reason.startswith("annotations[4] of instances.json: ")
    assert reason in problem.reason


def test_missing_images(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images/a.jpg").unlink()
    assert read(tmp_path) == ([B], [Problem("images/a.jpg", "no such file")])
    with pytest.raises(UserError, match=r"none of the images exists, .*pictures/a.jpg first: .*data\.images="):
        read(tmp_path, images="pictures")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"cannot read .*instances.json \(Expecting value: line 1.*data\.annotations="),
        ("", "cannot read"),
        ("[1, 2]", "is a list, not an object with images, annotations, categories"),
        ({"images": [], "info": {}}, "no list 'annotations' and 'categories' but images, info"),
        ({**CONTENT, "annotations": {}}, "no list 'annotations'"),
        ({**CONTENT, "annotations": []}, "has no annotation"),
        (changed("images", {"file_name": "c.jpg"}), r"images\[3\] of instances.json has no id"),
        (changed("images", {"id": 4}), r"images\[3\] of instances.json has no file_name"),
        (changed("images", {"id": [4], "file_name": "c.jpg"}), r"images\[3\] .*has the id \[4\]"),
        (changed("images", {"id": 1, "file_name": "c.jpg"}), r"images\[3\] .*has the id 1 of another image"),
        (changed("images", {"id": 4, "file_name": "/etc/passwd"}), r"images\[3\] .*'/etc/passwd' is an absolute path"),
        (changed("images", {"id": 4, "file_name": "../../c.jpg"}), r"images\[3\] .* leads out of the data folder"),
        (changed("categories", {"id": 4}), r"categories\[3\] .*has no name"),
        (changed("annotations", {"id": 4}), r"annotations\[4\] .*has no image_id"),
        ({**CONTENT, "annotations": ["x"]}, r"annotations\[0\] of instances.json is 'x'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": "none.json"}, r"none.json does not exist: .*data\.annotations="),
        ({"annotations": {"training": "instances.json"}}, "a part 'training': did you mean train"),
        ({"images": {"train": "images"}}, "must name the same parts"),
        ({"images": "../images"}, r"data\.images=../images must be a folder below data\.root"),
        ({"objects": "biggest"}, r"data\.objects=biggest is unknown"),
        ({"crowd": "maybe"}, r"data\.crowd=maybe is unknown"),
        ({"margin": -1}, r"data\.margin=-1"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path), **options)


def test_generated(tmp_path: Path) -> None:
    module = CocoDataModule(generate.coco(tmp_path, per_class=2), annotations="instances.json", image_size=16)
    module.setup()
    assert module.classes == generate.CLASSES
    assert len(module.samples) == 6
    module.eval_dataloader("all")
