import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier.data import AnnotationCropDataModule
from classifier.data.annotation_crop import read_annotation
from classifier.errors import UserError
from tests.data.listing import listed, problems
from tests.generate import picture, save, voc_xml

TWO = [("cat", (11, 11, 20, 20)), ("dog", (1, 1, 40, 30))]


def data(root: Path, annotations: dict[str, str | bytes], size: tuple[int, int] = (80, 60)) -> Path:
    """One image for each annotation; keys are paths without a suffix."""
    for number, (name, text) in enumerate(annotations.items()):
        save(picture("red", size, seed=number), root / "images" / f"{name}.jpg")
        path = root / "annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def read(root: Path, **options: Any) -> AnnotationCropDataModule:
    return AnnotationCropDataModule(root, **options)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [("cat", (10, 10, 20, 20)), ("dog", (0, 0, 40, 30))]),
        ({"objects": "largest"}, [("dog", (0, 0, 40, 30))]),
        ({"objects": "first"}, [("cat", (10, 10, 20, 20))]),
        ({"objects": "first", "class_from": "folder"}, [("husky", (10, 10, 20, 20))]),
    ],
)
def test_which_objects(tmp_path: Path, options: dict[str, Any], wanted: list[tuple[str, object]]) -> None:
    module = read(data(tmp_path, {"husky/x": voc_xml(TWO, (80, 60))}), **options)
    assert listed(module) == [("images/husky/x.jpg", name, box) for name, box in wanted]
    assert problems(module) == {}


def test_boxes_are_one_based_and_inclusive(tmp_path: Path) -> None:
    """The patch of 3x2 pixels, and not one pixel beside it."""
    image = Image.new("L", (12, 10), 255)
    image.paste(0, (4, 5, 7, 7))
    root = data(tmp_path, {"x": voc_xml([("patch", (5, 6, 7, 7)), ("other", (4, 5, 8, 8))], (12, 10))})
    (root / "images/x.jpg").unlink()
    save(image, root / "images/x.png")
    module = read(root, image_size=(2, 3), resize="squash", channels=1)
    module.setup()
    patch = module.preprocessing(module.image(0), module.box(0))
    assert module.box(0) == (4, 5, 7, 7)
    assert patch.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    module = read(root, image_size=(4, 5), resize="squash", channels=1)
    module.setup()
    around = module.preprocessing(module.image(1), module.box(1)).numpy()[0]
    assert np.array_equal(around, np.pad(np.zeros((2, 3)), 1, constant_values=255))


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
        (b"\x89PNG\r\n\x1a\n\0\0", "malformed XML"),
        (b'<?xml version="1.0" encoding="klingon"?>' + document().encode(), ""),
        ("<html></html>", "no <annotation>"),
        ("<annotation><object><name>cat</name></object></annotation>", "no box"),
        (document(BOX.replace("30", "wide")), "no box"),
        (document(BOX.replace("30", "nan")), "no box"),
        (document(BOX.replace("30", "9" * 5000)), "no box: x 0 to inf"),
        (document(BOX.replace("<xmin>1", "<xmin>41")), "no box: x 40 to 30"),
        (document(name="<name> </name>"), "<name>.*data.class_from=folder"),
        (document(name="<name>&#xD800;</name>"), "malformed XML"),
        ("<a>" * 200_000 + "</a>" * 200_000, "no <annotation>"),
        (document() + " " * 4_000_000, "4 MB"),
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, content: str | bytes, reason: str) -> None:
    root = data(tmp_path, {"good": voc_xml(TWO, (80, 60)), "odd": content})
    module = read(root)
    assert list(problems(module)) == ["images/odd.jpg" if "no box" in reason else "annotations/odd.xml"]
    assert {row[0] for row in listed(module)} == {"images/good.jpg"}
    with pytest.raises(UserError, match=rf"odd.(xml|jpg): .*{reason}"):
        read(root).setup()


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
    module = read(root)
    assert {name for _, name, _ in listed(module)} == {"cat", "dog"}
    (reason,) = problems(module).values()
    assert "ha" not in reason.split()
    assert "hush" not in reason


def test_skip_lists_all_that_was_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names: dict[str, str | bytes] = {
        "a": voc_xml([*TWO, ("cat", (71, 51, 10**12, 500))], (0, 0)),  # the size of an annotation is often unknown
        "b": voc_xml(TWO, (80, 60)),
        "c": "<",
        "d": voc_xml(TWO[:1], (80, 60)),
        "e": voc_xml([("cat", (200, 1, 300, 9))], (80, 60)),
        "f": voc_xml([TWO[0], ("", (1, 1, 9, 9))], (80, 60)),  # half bad
    }
    root = data(tmp_path, names)
    (root / "images/b.jpg").unlink()
    (root / "images/d.jpg").write_bytes(b"")
    (root / "annotations/g.xml").write_bytes((root / "annotations/a.xml").read_bytes())
    for name in ("images/g.png", "images/g.jpg"):  # two files of one name
        save(picture("red"), root / name)
    save(picture("red"), root / "images/more.jpg")
    module = read(root, on_error="skip")
    module.setup()
    left_out = {"annotations/b.xml", "annotations/c.xml", "annotations/f.xml", "images/d.jpg", "images/e.jpg"}
    left_out |= {"annotations/g.xml"}
    assert set(module.skipped["path"]) == left_out
    assert set(module.samples["path"]) == {"images/a.jpg"}
    assert [module.box(row) for row in range(3)] == [(10, 10, 20, 20), (0, 0, 40, 30), (70, 50, 80, 60)]
    assert "1 images" in caplog.text
    with pytest.raises(UserError) as error:
        read(root).setup()
    assert all(path in str(error.value) for path in left_out)


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_a_missing_folder_names_its_key(tmp_path: Path, folder: str) -> None:
    data(tmp_path, {"x": voc_xml(TWO, (80, 60))}).joinpath(folder).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"data\.{folder}="):
        read(tmp_path).read()
    assert len(listed(read(tmp_path, **{folder: "elsewhere"}))) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objects", "bigest"),
        ("class_from", "file"),
        ("difficult", "drop"),
        ("margin", -0.1),
        ("images", "../other"),
        ("annotations", "/other"),
        ("image_sets", "../other"),
    ],
)
def test_bad_options_name_their_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}={value}"):
        read(tmp_path, **{key: value})


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
    assert [name for _, name, _ in listed(read(data(tmp_path, {"a": easy, "b": hard, "c": cut}), **options))] == wanted


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
        ({"train": "1\n", "val": "2\n", "trainval": "1\n2\n", "test": "3\n"}, {"1": "train", "2": "val", "3": "test"}),
        ({"train": "1", "val": "2 \n", "trainval": "1\r\n2\r\n"}, {"1": "train", "2": "val"}),
        ({"trainval": "1\n2\n3\n", "val": "2\n"}, {"1": "train", "2": "val", "3": "train"}),
        ({"trainval": "1\n", "test": "3\n", "aeroplane_train": "2  1\n4 -1\n"}, {"1": "train", "3": "test"}),
    ],
)
def test_image_sets(tmp_path: Path, lists: dict[str, str], parts: dict[str, str]) -> None:
    module = read(voc_year(tmp_path, lists), **OFFICIAL)
    assert {Path(str(row[0])).stem: row[3] for row in listed(module, "split")} == parts
    assert problems(module) == {}


@pytest.mark.parametrize(
    ("lists", "message"),
    [({}, r"data\.image_sets=null"), ({"train": "1\n2\n", "test": "2\n"}, "2 for train and for test")],
)
def test_image_sets_that_cannot_be_used(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(voc_year(tmp_path, lists), **OFFICIAL).read()


@pytest.mark.parametrize("negatives", [None, "background"])
def test_an_image_without_objects(tmp_path: Path, negatives: str | None, caplog: pytest.LogCaptureFixture) -> None:
    root = data(tmp_path, {"a": voc_xml(TWO, (80, 60)), "b": voc_xml([], (80, 60)), "c": voc_xml([], (80, 60))})
    module = read(root, negatives=negatives)
    module.setup()
    assert module.classes == (("background", "cat", "dog") if negatives else ("cat", "dog"))
    assert [module.box(row) for row in range(2, len(module.samples))] == [(0, 0, 80, 60)] * (2 if negatives else 0)
    assert ("2 images have no box" in caplog.text) != bool(negatives)


def test_names_from_a_mac_and_pipes(tmp_path: Path) -> None:
    root = data(tmp_path, {name: document() for name in ("caf\u00e9", "pipe")})
    (root / "images" / "caf\u00e9.jpg").rename(root / "images" / "cafe\u0301.jpg")
    (root / "annotations" / "pipe.xml").unlink()
    os.mkfifo(root / "annotations" / "pipe.xml")
    module = read(root)
    assert [row[0] for row in listed(module)] == ["images/cafe\u0301.jpg"]
    assert "named pipe" in problems(module)["annotations/pipe.xml"]


def test_images_and_annotations_of_a_part_in_one_folder(tmp_path: Path) -> None:
    """As Roboflow writes them; without the parts where one folder has another name."""
    xml = voc_xml(TWO, (80, 60))
    root = data(tmp_path, {f"{part}/{part}_jpg.rf.0a": xml for part in ("train", "valid", "Test")})
    for path in (root / "annotations").rglob("*.xml"):
        path.rename(root / "images" / path.relative_to(root / "annotations"))
    (root / "images/train/README").touch()
    module = read(root / "images", images=".", annotations=".")
    assert [row[-1] for row in listed(module, "split")] == ["test", "test", "train", "train", "val", "val"]
    assert problems(module) == {}
    (root / "images/valid").rename(root / "images/valid2")
    assert {row[-1] for row in listed(module, "split")} == {None}
