from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier.data.annotation_crop import VocSource, read_annotation
from classifier.data.modules import AnnotationCropDataModule
from classifier.data.samples import Problem, Samples, with_margin
from classifier.errors import UserError
from tests.generate import CLASSES, picture, save, voc_xml

TWO = [("cat", (11, 11, 20, 20)), ("dog", (1, 1, 40, 30))]


def data(root: Path, annotations: dict[str, str | bytes], size: tuple[int, int] = (80, 60)) -> Path:
    """One image for each annotation; keys are paths without a suffix."""
    for number, (name, text) in enumerate(annotations.items()):
        save(picture("red", size, seed=number), root / "images" / f"{name}.jpg")
        path = root / "annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def read(root: Path, **options: Any) -> tuple[list[tuple[str, str, object]], list[Problem]]:
    samples, problems = VocSource(root, **options).read()
    return rows(samples), problems


def rows(samples: Samples) -> list[tuple[str, str, object]]:
    return [
        (samples.relative_path(row), samples.classes[samples.labels[row]], samples.box(row))
        for row in range(len(samples))
    ]


@pytest.mark.parametrize(
    ("objects", "wanted"),
    [
        ("all", [("cat", (10, 10, 20, 20)), ("dog", (0, 0, 40, 30))]),
        ("largest", [("dog", (0, 0, 40, 30))]),
        ("first", [("cat", (10, 10, 20, 20))]),
    ],
)
def test_which_objects(tmp_path: Path, objects: str, wanted: list[tuple[str, object]]) -> None:
    found, problems = read(data(tmp_path, {"x": voc_xml(TWO, (80, 60))}), objects=objects)
    assert found == [("images/x.jpg", name, box) for name, box in wanted]
    assert problems == []


def test_class_from_the_folder(tmp_path: Path) -> None:
    root = data(tmp_path, {"husky/1": voc_xml(TWO, (80, 60)), "pug/1": voc_xml(TWO[:1], (80, 60))})
    samples, _ = VocSource(root, class_from="folder", objects="first").read()
    assert rows(samples) == [
        ("images/husky/1.jpg", "husky", (10, 10, 20, 20)),
        ("images/pug/1.jpg", "pug", (10, 10, 20, 20)),
    ]
    assert samples.classes == ("husky", "pug")


@pytest.mark.parametrize(
    ("margin", "box"), [(0.0, (10, 20, 30, 60)), (0.1, (8, 16, 32, 64)), (1.0, (-10, -20, 50, 100))]
)
def test_margin(tmp_path: Path, margin: float, box: tuple[int, ...]) -> None:
    assert with_margin((10, 20, 30, 60), margin) == box
    root = data(tmp_path, {"x": voc_xml([("cat", (11, 21, 30, 60))], (80, 60))})
    assert [row[2] for row in read(root, margin=margin)[0]] == [box]


def test_boxes_are_cut_at_the_edge_of_the_image_not_of_the_stated_size(tmp_path: Path) -> None:
    """The <size> of an annotation is often wrong."""
    cat = voc_xml([("cat", (71, 51, 500, 500))], (5, 5))
    dog = voc_xml([("dog", (0, 0, 10, 10))], (5000, 5000))
    module = AnnotationCropDataModule(data(tmp_path, {"x": cat, "y": dog}))
    module.setup()
    assert [row[2] for row in rows(module.samples)] == [(70, 50, 80, 60), (0, 0, 10, 10)]


def test_boxes_are_one_based_and_inclusive(tmp_path: Path) -> None:
    """The patch of 3x2 pixels, and not one pixel beside it."""
    image = Image.new("L", (12, 10), 255)
    image.paste(0, (4, 5, 7, 7))
    root = data(tmp_path, {"x": voc_xml([("patch", (5, 6, 7, 7)), ("other", (4, 5, 8, 8))], (12, 10))})
    (root / "images/x.jpg").unlink()
    save(image, root / "images/x.png")
    module = AnnotationCropDataModule(root, image_size=(2, 3), resize="squash", channels=1)
    module.setup()
    patch = module.preprocessing(module.samples.path(0), module.samples.box(0))
    assert module.samples.box(0) == (4, 5, 7, 7)
    assert patch.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    module = AnnotationCropDataModule(root, image_size=(4, 5), resize="squash", channels=1)
    module.setup()
    around = module.preprocessing(module.samples.path(1), module.samples.box(1)).numpy()[0]
    assert np.array_equal(around, np.pad(np.zeros((2, 3)), 1, constant_values=255))


def test_one_pixel_is_a_box(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(voc_xml([("cat", (5, 6, 5, 6))], (12, 10)))
    assert read_annotation(tmp_path / "x.xml") == [(("cat", (4, 5, 5, 6)), False, False)]


BOX = "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>"
BILLION = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
PARAMETER = '<!DOCTYPE x [<!ENTITY % a SYSTEM "file://{secret}"> %a;]>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file://{secret}">]>'


def document(box: str = BOX, name: str = "<name>cat</name>", head: str = "") -> str:
    return f"{head}<annotation><object>{name}<bndbox>{box}</bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object>", "malformed XML"),
        ("", "malformed XML"),
        (b"\x89PNG\r\n\x1a\n\0\0", "malformed XML"),
        (b'<?xml version="1.0" encoding="klingon"?>' + document().encode(), ""),
        ("<annotation></annotation>", "no <object>"),
        (document("<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"), "'cat' lacks <ymax>"),
        ("<annotation><object><name>cat</name></object></annotation>", "'cat' lacks <xmin>"),
        (document(BOX.replace("30", "wide")), "<xmax>wide</xmax>, which is not a number"),
        (document(BOX.replace("30", "")), "<xmax></xmax>, which is not a number"),
        (document(BOX.replace("30", "nan")), "<xmax>nan"),
        (document(BOX.replace("30", "inf")), "<xmax>inf"),
        (document(BOX.replace("<xmin>1", "<xmin>31")), "empty box: x 31 to 30"),
        (document(BOX.replace("<ymin>2", "<ymin>99")), "empty box.*y 99 to 40"),
        (document(name=""), "<name>.*data.class_from=folder"),
        (document(name="<name> </name>"), "<name>.*data.class_from=folder"),
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, content: str | bytes, reason: str) -> None:
    root = data(tmp_path, {"good": voc_xml(TWO, (80, 60)), "odd": content})
    samples, problems = VocSource(root).read()
    assert [problem.path for problem in problems] == ["annotations/odd.xml"]
    assert {row[0] for row in rows(samples)} == {"images/good.jpg"}
    with pytest.raises(UserError, match=f"odd.xml: .*{reason}"):
        AnnotationCropDataModule(root).setup()


def test_a_far_too_large_box_does_not_end_in_a_traceback(tmp_path: Path) -> None:
    root = data(tmp_path, {"x": document(BOX.replace("30", "1e12")), "y": voc_xml(TWO, (80, 60))})
    module = AnnotationCropDataModule(root, on_error="skip")
    module.setup()
    boxes = {row[0]: row[2] for row in rows(module.samples)}
    if module.skipped:
        assert [problem.path for problem in module.skipped] == ["annotations/x.xml"]
    else:
        assert boxes["images/x.jpg"] == (0, 1, 80, 40)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("head", "entity"), [(BILLION, "&b;"), (EXTERNAL, "&a;"), (PARAMETER, "cat"), (BILLION, "cat")]
)
def test_entities_are_refused_unread(tmp_path: Path, encoding: str, head: str, entity: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    text = document(name=f"<name>{entity}</name>", head=head.format(secret=secret) if "secret" in head else head)
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)
    root = data(tmp_path, {"good": voc_xml(TWO, (80, 60)), "bomb": xml})
    with pytest.raises(ValueError, match="entity definitions is refused"):
        read_annotation(root / "annotations/bomb.xml")
    found, problems = read(root)
    assert {name for _, name, _ in found} == {"cat", "dog"}
    assert [problem.path for problem in problems] == ["annotations/bomb.xml"]
    assert "ha" not in problems[0].reason.split()
    assert "hush" not in problems[0].reason


def test_utf16_without_entities_is_read(tmp_path: Path) -> None:
    xml = f'<?xml version="1.0" encoding="utf-16"?>{document()}'.encode("utf-16")
    assert read(data(tmp_path, {"x": xml})) == ([("images/x.jpg", "cat", (0, 1, 30, 40))], [])


def test_skip_lists_all_that_was_left_out(tmp_path: Path) -> None:
    names: dict[str, str | bytes] = {
        "a": voc_xml(TWO, (80, 60)),
        "b": voc_xml(TWO, (80, 60)),
        "c": "<",
        "d": voc_xml(TWO[:1], (80, 60)),
    }
    names |= {"e": voc_xml([("cat", (200, 1, 300, 9))], (80, 60)), "f": voc_xml(TWO, (80, 60))}
    root = data(tmp_path, names)
    (root / "images/b.jpg").unlink()
    (root / "images/d.jpg").write_bytes(b"")
    module = AnnotationCropDataModule(root, on_error="skip")
    module.setup()
    assert {problem.path for problem in module.skipped} == {
        "annotations/b.xml",
        "annotations/c.xml",
        "images/d.jpg",
        "images/e.jpg",
    }
    assert {row[0] for row in rows(module.samples)} == {"images/a.jpg", "images/f.jpg"}
    with pytest.raises(UserError, match="4 of 8 samples") as error:
        AnnotationCropDataModule(root).setup()
    assert all(problem.path in str(error.value) for problem in module.skipped)


def test_an_annotation_that_is_half_bad_gives_no_sample(tmp_path: Path) -> None:
    root = data(tmp_path, {"x": voc_xml([TWO[0], ("", (1, 1, 9, 9))], (80, 60)), "y": voc_xml(TWO, (80, 60))})
    found, problems = read(root)
    assert [problem.path for problem in problems] == ["annotations/x.xml"]
    assert {row[0] for row in found} == {"images/y.jpg"}


def test_images_without_annotation_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = data(tmp_path, {"x": voc_xml(TWO, (80, 60))})
    save(picture("red"), root / "images/more.jpg")
    assert len(read(root)[0]) == 2
    assert "1 images have no annotation" in caplog.text


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_a_missing_folder_names_its_key(tmp_path: Path, folder: str) -> None:
    data(tmp_path, {"x": voc_xml(TWO, (80, 60))}).joinpath(folder).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"data\.{folder}="):
        VocSource(tmp_path).read()
    assert len(read(tmp_path, **{folder: "elsewhere"})[0]) == 2


@pytest.mark.parametrize(("key", "value"), [("objects", "bigest"), ("class_from", "file"), ("margin", -0.1)])
def test_bad_options_name_their_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}={value}"):
        VocSource(tmp_path, **{key: value})


@pytest.mark.parametrize("key", ["images", "annotations", "image_sets"])
@pytest.mark.parametrize("where", ["../other", "/other"])
def test_folders_lie_below_the_root(tmp_path: Path, key: str, where: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}=.*other must be a folder below data\.root"):
        VocSource(tmp_path / "root", **{key: where})  # type: ignore[arg-type]


def test_folders_may_be_the_root_itself(tmp_path: Path) -> None:
    root = data(tmp_path / "photos", {"x": document()})
    (root / "images" / "x.jpg").rename(root / "x.jpg")
    (root / "annotations" / "x.xml").rename(root / "x.xml")
    found, problems = read(root, images=".", annotations="./")
    assert ([name for name, *_ in found], problems) == (["x.jpg"], [])


def test_given_classes(annotated: Path) -> None:
    samples, _ = VocSource(annotated).read(["red", "yellow", "green", "blue"])
    assert samples.classes == ("red", "yellow", "green", "blue")
    names = [samples.classes[label] for label in samples.labels]
    assert names == [Path(samples.relative_path(row)).name.split("_")[0] for row in range(60)]
    assert VocSource(annotated).read()[0].classes == CLASSES
    with pytest.raises(UserError, match="'blue'"):
        VocSource(annotated).read(["red", "green"])


def marked(name: str, marks: str) -> str:
    return document(name=f"<name>{name}</name>{marks}")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["easy", "hard", "cut"]),
        ({"difficult": "skip"}, ["easy", "cut"]),
        ({"truncated": "skip"}, ["easy", "hard"]),
        ({"difficult": "skip", "objects": "first"}, ["easy", "cut"]),
    ],
)
def test_marked_objects(tmp_path: Path, options: dict[str, str], wanted: list[str]) -> None:
    easy = marked("easy", "<difficult>0</difficult><truncated>Unspecified</truncated>")
    hard, cut = marked("hard", "<difficult>1</difficult>"), marked("cut", "<truncated>1</truncated>")
    found, problems = read(data(tmp_path, {"a": easy, "b": hard, "c": cut}), **options)
    assert [name for _, name, _ in found] == wanted
    assert problems == []


@pytest.mark.parametrize("twin", ["images/x.png", "annotations/x"])
def test_two_files_of_one_name_are_a_problem_that_names_both(tmp_path: Path, twin: str) -> None:
    root = data(tmp_path, {"x": voc_xml(TWO, (80, 60)), "y": voc_xml(TWO, (80, 60))})
    if twin.startswith("images"):
        save(picture("red"), root / twin)
    else:
        (root / twin).write_bytes((root / "annotations/x.xml").read_bytes())
    found, problems = read(root)
    assert {path for path, _, _ in found} == {"images/y.jpg"}
    (problem,) = problems
    assert twin in problem.reason
    assert f"{twin.split('/')[0]}/x.{'jpg' if twin.startswith('images') else 'xml'}" in problem.reason


def voc_year(root: Path, lists: dict[str, str]) -> Path:
    """PASCAL VOC's own layout with the images 1 to 4."""
    data(root, {name: voc_xml(TWO, (80, 60)) for name in "1234"})
    (root / "images").rename(root / "JPEGImages")
    (root / "annotations").rename(root / "Annotations")
    for name, text in lists.items():
        path = root / "ImageSets/Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


OFFICIAL: dict[str, Any] = {"images": "JPEGImages", "annotations": "Annotations", "image_sets": "ImageSets/Main"}


@pytest.mark.parametrize(
    ("lists", "parts"),
    [
        ({"train": "1\n", "val": "2\n", "trainval": "1\n2\n", "test": "3\n"}, {"1": 0, "2": 1, "3": 2}),
        ({"train": "1", "val": "2 \n", "trainval": "1\r\n2\r\n"}, {"1": 0, "2": 1}),
        ({"trainval": "1\n2\n", "test": "3\n4\n"}, {"1": 0, "2": 0, "3": 2, "4": 2}),
        ({"trainval": "1\n2\n3\n", "val": "2\n"}, {"1": 0, "2": 1, "3": 0}),
        ({"train": "1\n", "val": "2\n", "aeroplane_train": "3  1\n4 -1\n"}, {"1": 0, "2": 1}),
    ],
)
def test_image_sets(tmp_path: Path, lists: dict[str, str], parts: dict[str, int]) -> None:
    samples, problems = VocSource(voc_year(tmp_path, lists), **OFFICIAL).read()
    assert problems == []
    assert {samples.path(row).stem: samples.splits[row] for row in range(len(samples))} == parts
    assert len(samples) == 2 * len(parts)


def test_what_is_listed_without_an_annotation_is_a_problem(tmp_path: Path) -> None:
    _, problems = VocSource(voc_year(tmp_path, {"train": "1\n2\n", "val": "3\n9\n"}), **OFFICIAL).read()
    assert [(problem.path, "no annotation" in problem.reason) for problem in problems] == [("9", True)]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, r"has none of train.txt, .* data\.image_sets=null"),
        ({"train": "\n"}, r"has none of train.txt"),
        ({"train": "1\n2\n", "test": "2\n"}, "lists 2 for train and for test"),
    ],
)
def test_image_sets_that_cannot_be_used(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VocSource(voc_year(tmp_path, lists), **OFFICIAL).read()


def test_a_class_that_the_training_list_lacks(tmp_path: Path) -> None:
    root = voc_year(tmp_path, {"train": "1\n2\n", "test": "3\n"})
    (root / "Annotations/3.xml").write_text(voc_xml([("bird", (1, 1, 9, 9))], (80, 60)))
    with pytest.raises(UserError, match=r"'bird' that training does not know \(its 2 classes: cat, dog\)"):
        VocSource(root, **OFFICIAL).read()
