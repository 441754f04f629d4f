import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from classifier.data import CocoDataModule
from classifier.errors import UserError
from tests.data.listing import listed, problems, touch

IMAGES: list[dict[str, Any]] = [
    {"id": 1, "file_name": "a.jpg"},
    {"id": "x2", "file_name": "sub/b.jpg"},
    {"id": 3, "file_name": "empty.jpg"},
]
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


def changed(key: str, entry: object) -> dict[str, Any]:
    """The content with one more entry in a list."""
    content = copy.deepcopy(CONTENT)
    content[key].append(entry)
    return content


def read(root: Path, **options: Any) -> CocoDataModule:
    return CocoDataModule(root, **{"annotations": "instances.json", **options})


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
        ({"negatives": "none"}, [DOG, CAT, B, ("images/empty.jpg", "none", (None,) * 4)]),
        ({"box_format": "xyxy", "objects": "first"}, [("images/a.jpg", "dog", (1, 2, 10, 10))]),
    ],
)
def test_which_objects(
    tmp_path: Path, options: dict[str, Any], wanted: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    module = read(write(tmp_path), **options)
    assert listed(module) == wanted
    assert ("1 images have no box" in caplog.text) != ("negatives" in options)
    assert problems(module) == {}


@pytest.mark.parametrize("form", ["{}", '{"bbox": null}', '{"bbox": []}'])
def test_without_boxes_samples_are_whole_images(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """As of classification exports; with text and numbers for the same ids."""
    bare: list[dict[str, Any]] = [{"image_id": 1.0, "category_id": "5"}, {"image_id": "1", "category_id": 5.0}]
    bare += [{"image_id": "x2", "category_id": 2}]
    box: dict[str, Any] = json.loads(form)
    content = {**CONTENT, "annotations": [{**entry, **box} for entry in bare]}
    assert listed(read(write(tmp_path, content))) == [("images/a.jpg", "dog"), ("images/sub/b.jpg", "cat")]
    assert "images/empty.jpg" in caplog.text
    assert len(listed(read(tmp_path, negatives="none"))) == 3
    content["annotations"].append({"image_id": "x2", "category_id": 9, **box})
    found = problems(read(write(tmp_path, content)))
    assert [*found] == ["images/sub/b.jpg"]
    assert "task=multi_label" in found["images/sub/b.jpg"]


def test_the_size_that_an_image_states(tmp_path: Path) -> None:
    sizes: list[dict[str, Any]] = [{"width": 80, "height": "60"}, {"width": 10**400, "height": 60}, {"width": None}]
    images = [{**image, **size} for image, size in zip(IMAGES, sizes, strict=True)]
    table = read(write(tmp_path, {**CONTENT, "images": images}), negatives="none").read()
    assert table[["width", "height"]].fillna(0).to_numpy().tolist() == [[80, 60]] * 2 + [[0, 0]] * 2


def parts(root: Path, name: str = "cat") -> dict[str, str]:
    """A file for each of two parts, with the same ids for different images and categories."""
    write(root, {**CONTENT, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": BOXES[:2]}, "train.json")
    categories = [{"id": 5, "name": name}, {"id": 2, "name": "dog"}]
    other = {"images": [{"id": 1, "file_name": "sub/b.jpg"}], "annotations": BOXES[:1], "categories": categories}
    write(root, other, "val.json")
    return {"train": "train.json", "val": "val.json"}


@pytest.mark.parametrize("images", ["images", {"train": "images", "val": "images"}])
def test_a_file_for_each_part(tmp_path: Path, images: Any) -> None:
    files = parts(tmp_path)
    module = read(tmp_path, annotations=files, images=images)
    assert listed(module, "split") == [
        (*DOG, "train"), (*CAT, "train"), ("images/sub/b.jpg", "cat", (1, 2, 11, 12), "val")
    ]  # fmt: skip
    with pytest.raises(UserError, match="'bird'"):
        read(tmp_path, annotations=parts(tmp_path, "bird")).read()


def test_an_image_in_two_parts_is_a_problem(tmp_path: Path) -> None:
    module = read(write(tmp_path), annotations=dict.fromkeys(("train", "test"), "instances.json"))
    assert all("more than one part" in reason for reason in problems(module).values())
    assert listed(module) == []


@pytest.mark.parametrize(
    ("entry", "path", "reason"),
    [
        ({"image_id": 1, "category_id": 77, "bbox": [0, 0, 1, 1]}, "images/a.jpg", "category_id 77"),
        ({"image_id": 1, "category_id": [5], "bbox": [0, 0, 1, 1]}, "images/a.jpg", "category_id [5]"),
        ({"image_id": 8, "category_id": 5, "bbox": [0, 0, 1, 1]}, "instances.json", "image_id 8"),
        ({"id": 4}, "instances.json", "image_id"),
        ({"image_id": 1, "bbox": [0, 0, 1, 1]}, "images/a.jpg", "category_id"),
        ({"image_id": 1, "category_id": 5, "bbox": [0, 0, 1]}, "images/a.jpg", "no box"),
        ({"image_id": 1, "category_id": 5, "bbox": [0, 0, "w", 1]}, "images/a.jpg", "no box"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, -2, 1]}, "images/a.jpg", "x 3 to 1"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, float("nan"), 1]}, "images/a.jpg", "no box"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, float("inf"), 1]}, "images/a.jpg", "no box"),
        ({"image_id": 1, "category_id": 5, "bbox": [3, 3, 10**400, 1]}, "images/a.jpg", "no box"),
        ({"image_id": 10**400, "category_id": 5, "bbox": [0, 0, 1, 1]}, "instances.json", "image_id 1000"),
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, entry: dict[str, Any], path: str, reason: str) -> None:
    module = read(write(tmp_path, changed("annotations", entry)))
    assert listed(module) == [DOG, CAT, B]
    (found,) = problems(module).items()
    assert found[0] == path
    assert found[1].startswith("annotations[4] of instances.json: ")
    assert reason in found[1]


def test_marks_and_names_as_text(tmp_path: Path) -> None:
    content = changed("categories", {"id": 6, "name": " "})
    content["annotations"] += [{**BOXES[0], "iscrowd": mark, "category_id": 6} for mark in ("0", "false", "1", "True")]
    module = read(write(tmp_path, content))
    assert [*problems(module).values()] == ["annotations[5] of instances.json: no name has the category_id 6"]
    (tmp_path / "instances.json").unlink()
    os.mkfifo(tmp_path / "instances.json")
    with pytest.raises(UserError, match=r"named pipe.*data\.annotations="):
        module.read()


def test_missing_images(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images/a.jpg").unlink()
    assert listed(read(tmp_path)) == [B]
    assert list(problems(read(tmp_path))) == ["images/a.jpg"]
    with pytest.raises(UserError, match=r"pictures/a.jpg.*data\.images="):
        read(tmp_path, images="pictures").read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"instances.json .*line 1.*data\.annotations="),
        ("[1, 2]", r"'images'.*data\.annotations="),
        ({**CONTENT, "annotations": [{**BOXES[0], "bbox": [0.1, 0.2, 0.3, 0.4]}]}, r"data\.box_unit=fraction"),
        ({"images": [], "categories": [], "info": {}}, "'annotations'"),
        ({**CONTENT, "annotations": []}, r"none of.*data\.annotations="),
        (changed("annotations", "x"), "'annotations'"),
        (changed("images", {"file_name": "c.jpg"}), r"images\[3\] has no id"),
        (changed("images", {"id": 1, "file_name": "c.jpg"}), r"images\[3\] .* 1"),
        (changed("images", {"id": [1], "file_name": "\ud800.jpg"}), r"instances.json .*data\.annotations="),
        (changed("categories", {"id": "5", "name": "\ud800"}), r"instances.json .*data\.annotations="),
        (changed("categories", {"id": "5", "name": "owl"}), r"instances.json .* 5 .*'dog' and 'owl'"),
        (json.dumps(CONTENT)[:-40], r"instances.json .*data\.annotations="),
        ('{"images": ' + "9" * 5000 + "}", r"instances.json .*data\.annotations="),
        ('{"images": ' + "[" * 10**5 + "]" * 10**5 + "}", r"instances.json .*data\.annotations="),
        (changed("images", {"id": 4, "file_name": "/etc/passwd"}), r"images\[3\] .*'/etc/passwd'"),
        (changed("images", {"id": 4, "file_name": "../../c.jpg"}), r"images\[3\] .*'../../c.jpg'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, content)).read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": "none.json"}, r"none.json.*data\.annotations="),
        ({"annotations": {"training": "instances.json"}}, r"data\.annotations=\{train:"),
        ({"images": {"train": "images"}}, r"data\.images=\{train:"),
        ({"images": "../images"}, r"data\.images=../images .*data\.root"),
        ({"objects": "biggest"}, r"data\.objects=biggest"),
        ({"crowd": "maybe"}, r"data\.crowd=maybe"),
        ({"margin": -1}, r"data\.margin=-1"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path), **options).read()


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with write(tmp_path).joinpath("instances.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match=r"GB.*data\.annotations="):
        read(tmp_path).read()
