"""python scripts/check_data.py: each fault is reported once, where it is, and a clean set not at all."""

import json
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.photos import photo
from classifier.data import ClassificationDataModule
from classifier.data.image import Box, PillowImage, decode, everything
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.tools.check_data import KINDS, duplicate_findings, image_findings, near_duplicate_findings, read_all
from classifier.tools.image_facts import THUMBNAIL, image_facts
from tests import generate
from tests.generate import save
from tests.tools.parts import files
from tests.verbs.command import Result, run

CHECK = "../scripts/check_data"  # beside src/


def check(root: Path, *arguments: str, data: str = "folder") -> Result:
    settings = (f"data={data}", f"data.root={root}", "data.image_size=64", f"json={root.parent / 'report.json'}")
    return run(CHECK, *settings, *arguments, cwd=root.parent)


def report(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root.parent / "report.json").read_text())
    return loaded


def found(root: Path) -> dict[str, list[set[str]]]:
    """Kind -> the names of each item."""
    return {kind["kind"]: [set(item["names"]) for item in kind["items"]] for kind in report(root)["found"]}


def details(root: Path) -> dict[str, str]:
    return {item["names"][0]: item["detail"] for kind in report(root)["found"] for item in kind["items"]}


def said_beside(result: Result) -> list[str]:
    """What stands on stderr beside the progress bars."""
    return [line for line in result.err.splitlines() if line.split()[:1] not in (["reading"], ["comparing"])]


def divided_folder(root: Path, random: np.random.Generator) -> Path:
    """root/{train,val,test}/{cat,dog,owl,rare}: 12, 3 and 3 photographs of a class, 3, 1 and 1 of the rare one."""
    for part, count in (("train", 12), ("val", 3), ("test", 3)):
        for name in ("cat", "dog", "owl", "rare"):
            for index in range(count if name != "rare" else max(1, count // 4)):
                save(photo(random, (96, 80)), root / part / name / f"{part}_{name}_{index}.jpg")
    return root


def plant_damage(root: Path, random: np.random.Generator) -> dict[str, list[set[str]]]:
    cat = root / "train" / "cat"
    (cat / "empty.jpg").touch()
    (cat / "text.jpg").write_text("<html>not found</html>")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (cat / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"\0\0\0\1IDAT")
    for suffix in ("jpg", "png", "gif", "webp"):
        path = save(photo(random, (96, 80)), cat / f"cut.{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {
        "empty file": [{"train/cat/empty.jpg"}],
        "unreadable": [{"train/cat/cut.webp"}, {"train/cat/text.jpg"}],  # libwebp does not say why
        "too many pixels": [{"train/cat/bomb.png"}],
        "truncated": [{f"train/cat/cut.{suffix}"} for suffix in ("gif", "jpg", "png")],
    }


def plant_forms(root: Path, random: np.random.Generator) -> dict[str, list[set[str]]]:
    cat, size = root / "train" / "cat", (96, 80)
    save(photo(random, size), cat / "png.jpg", format="PNG")
    save(photo(random, size), cat / "frames.gif", save_all=True, append_images=[photo(random, size)])
    save(photo(random, (12, 80)), cat / "tiny.jpg")
    save(photo(random, (50, 80)), cat / "small.jpg")
    save(photo(random, (200, 150)), cat / "huge.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(photo(random, size), cat / "turned.jpg", exif=exif)
    for suffix in ("png", "tif"):
        deep = np.asarray(photo(random, size).convert("L")).astype(np.uint16) * 257
        save(Image.fromarray(deep), cat / f"deep.{suffix}")
    save(photo(random, size).convert("CMYK"), cat / "cmyk.jpg")
    save(photo(random, size).convert("P"), cat / "palette.png")
    alpha = photo(random, size).convert("RGBA")
    alpha.putalpha(200)
    save(alpha, cat / "alpha.png")
    names = {
        "wrong extension": ["png.jpg"],
        "several frames": ["frames.gif"],
        "tiny": ["tiny.jpg"],
        "enlarged": ["small.jpg"],
        "huge": ["huge.jpg"],
        "turned by EXIF": ["turned.jpg"],
        "16 bits": ["deep.png", "deep.tif"],
        "CMYK": ["cmyk.jpg"],
        "palette": ["frames.gif", "palette.png"],
        "transparency": ["alpha.png"],
    }
    return {kind: [{f"train/cat/{name}"} for name in of_kind] for kind, of_kind in names.items()}


def plant_twins(root: Path, random: np.random.Generator) -> dict[str, list[set[str]]]:
    """Equal and nearly equal ones inside a class, in two classes and in two parts; and a group in two parts."""
    places = {
        "same, other class": ("train/cat/a.jpg", "train/dog/b.jpg"),
        "same in two parts": ("train/cat/c.jpg", "test/cat/d.jpg"),
        "same twice": ("train/cat/e.jpg", "train/cat/f.jpg"),
        "alike, other class": ("val/cat/g.jpg", "val/dog/h.jpg"),
        "alike in two parts": ("train/cat/i.jpg", "val/cat/j.jpg"),
        "alike": ("train/cat/k.jpg", "train/cat/l.jpg"),
    }
    for kind, (first, second) in places.items():
        image = photo(random, (160, 120))
        save(image, root / first)
        copy = image.resize((100, 75)).point(lambda value: value * 1.15)
        save(image if kind.startswith("same") else copy, root / second, quality=75 if kind.startswith("same") else 50)
    save(photo(random, (96, 80)), root / "train" / "dog" / "group.jpg")
    save(photo(random, (96, 80)), root / "val" / "dog" / "group.jpg")
    return {
        **{kind: [set(names)] for kind, names in places.items()},
        "divided group": [{"train/dog/group.jpg", "val/dog/group.jpg"}],
    }


def test_every_planted_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    root = divided_folder(tmp_path / "photos", random)
    planted = {**plant_damage(root, random), **plant_forms(root, random), **plant_twins(root, random)}
    for path in (root / "test" / "owl").iterdir():
        path.unlink()
    (root / "test" / "owl").rmdir()
    planted |= {"missing class": [{"owl"}], "few images": [{"rare"}], "imbalance": [{"cat", "rare"}]}
    before = files(root)
    result = check(root, "max_pixels=20000", "max_imbalance=5", r"data.group_pattern='(\w+)\.\w+$'")
    assert result.code == 3, result.err
    assert found(root) == planted
    assert files(root) == before
    severities = {kind["kind"]: kind["severity"] for kind in report(root)["found"]}
    assert severities == {kind: KINDS[kind][0] for kind in planted}
    assert list(severities) == [kind for kind in KINDS if kind in planted], "the worst first"
    said = details(root)
    assert "400000000" in said["train/cat/bomb.png"]
    assert said["train/cat/a.jpg"] == "cat or dog"
    assert said["train/cat/c.jpg"] == "train and test"
    assert said["train/cat/png.jpg"] == "PNG content"
    assert said["owl"] == "none in test"
    assert said["train/cat/tiny.jpg"] == "12x80"
    for kind in planted:
        assert kind in result.out
    assert said_beside(result) == []


def test_nothing_is_found_in_a_clean_set(tmp_path: Path) -> None:
    """Several hundred different photographs, and blank ones, that are alike without being copies."""
    random = np.random.default_rng(1)
    root = tmp_path / "photos"
    for index in range(400):
        save(photo(random, (120, 90)), root / "abc"[index % 3] / f"{index}.jpg")
    for index in range(15):
        grey = random.normal(40 + 12 * index, 2, (90, 120, 3)).clip(0, 255).astype(np.uint8)
        save(Image.fromarray(grey), root / "abc"[index % 3] / f"blank{index}.jpg")
    result = check(root, "strict=true")
    assert (result.code, said_beside(result)) == (0, [])
    assert report(root)["found"] == []
    assert "415 images in 3 classes" in result.out
    counts = report(root)["classes"]["a"]
    assert list(counts) == ["train", "val", "test", "all"]
    assert counts["all"] == 139 == counts["train"] + counts["val"] + counts["test"]


def test_exit_codes(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    root = tmp_path / "photos"
    for index in range(24):
        save(photo(random, (96, 80)), root / "ab"[index % 2] / f"{index}.jpg")
    save(photo(random, (50, 80)), root / "a" / "small.jpg")
    assert check(root, "strict=true").code == 0, "an info is no fault"
    assert check(root, "strict=true", "min_side=90").code == 3
    assert len(found(root)["tiny"]) == 25
    assert check(root, "min_side=90").code == 0
    (root / "a" / "empty.jpg").touch()
    assert check(root).code == 3


def test_names_that_mean_something_to_the_terminal(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", per_class=12)
    for name in ("[red]x[red].jpg", "\udcff.jpg", "a" * 120 + ".jpg"):
        (root / "red" / name).touch()
    result = check(root)
    assert result.code == 3
    assert "[red]x[red].jpg" in result.out
    assert {r"red/\xff.jpg"} in found(root)["unusable annotation"]


def test_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    root = tmp_path / "photos"
    objects: dict[str, list[tuple[str, tuple[int, int, int, int]]]] = {
        f"{name}{index}": [(name, (11, 11, 100, 90))] for name in ("cat", "dog") for index in range(10)
    }
    objects["out"] = [("cat", (200, 200, 300, 300)), ("cat", (1, 1, 100, 80))]
    objects["over"] = [("dog", (50, 20, 170, 90))]
    objects["tiny"] = [("dog", (50, 20, 58, 100))]
    for stem, items in objects.items():
        save(photo(random, (160, 120)), root / "images" / f"{stem}.jpg", quality=90)
        xml = root / "annotations" / f"{stem}.xml"
        xml.parent.mkdir(exist_ok=True)
        xml.write_text(generate.voc_xml(items, (160, 120)))
    (root / "annotations" / "broken.xml").write_text("<annotation>")
    # another size of file, the same thing in the box, under another label
    image = Image.open(root / "images" / "cat1.jpg")
    image.paste(photo(random, (50, 30)), (110, 90))
    save(image, root / "images" / "dog1.jpg")
    assert check(root, "data.image_size=32", data="annotation_crop").code == 3
    boxes = "(10, 10, 100, 90)"
    findings = found(root)
    findings.pop("alike in two parts", None)  # as the split falls
    assert findings == {
        "unusable annotation": [{"annotations/broken.xml"}],
        "box outside": [{"images/out.jpg (199, 199, 300, 300)"}],
        "box cut": [{"images/over.jpg (49, 19, 170, 90)"}],
        "tiny": [{"images/tiny.jpg (49, 19, 58, 100)"}],
        "alike, other class": [{f"images/cat1.jpg {boxes}", f"images/dog1.jpg {boxes}"}],
    }
    check(root, "data.image_size=32", "data.margin=0.2", "near_duplicates=false", data="annotation_crop")
    assert "box cut" not in found(root)
    assert "alike, other class" not in found(root)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
def test_a_file_is_decoded_once_for_all_its_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    image = photo(np.random.default_rng(8), (160, 120))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    path = save(image, tmp_path / f"x.{suffix}", **({"quality": 95, "exif": exif} if suffix == "jpg" else {}))
    boxes = np.array([[0, 0, 40, 20], [60, 30, 150, 120], [100, 80, 300, 300]], np.int32)
    wanted = []
    for x1, y1, x2, y2 in np.clip(boxes, 0, (160, 120, 160, 120)).tolist():
        wanted.append(decode(path, (x1, y1, x2, y2), everything, (THUMBNAIL, THUMBNAIL), channels=1)[0])
    found = image_facts(path, boxes).thumbnails
    # JPEGs were decoded at half their size for some
    assert np.abs(found.astype(int) - np.stack(wanted)).mean() < (2 if suffix == "jpg" else 0.01)
    reads: list[object] = []
    read = PillowImage.read

    def counted(self: PillowImage, part: Box, shrink: int, channels: int) -> np.ndarray:
        reads.append(part)
        return read(self, part, shrink, channels)

    monkeypatch.setattr(PillowImage, "read", counted)
    image_facts(path, boxes)
    assert len(reads) == 1
    for share in (0.5, 0.9):  # cut off beyond all boxes, too
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with_boxes, without = image_facts(path, boxes), image_facts(path)
        assert with_boxes.notes == without.notes
        assert with_boxes.width == without.width == 0


class Pixels(ClassificationDataModule):
    """Images that are not files; the first six are of class a, the others of class b."""

    def __init__(self, root: Path, images: list[np.ndarray], **settings: Any) -> None:
        super().__init__(root, check="none", **settings)
        self.images = images

    def list_samples(self) -> pd.DataFrame:
        names = [str(number) for number in range(len(self.images))]
        labels = ["a" if number < 6 else "b" for number in range(len(names))]
        return pd.DataFrame({"path": names, "label": labels, "split": "train", "item": range(len(names))})

    def read_images(self, items: np.ndarray) -> list[np.ndarray]:
        return [self.images[item] for item in items]


def test_images_that_are_not_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(4)
    images = [np.array(photo(random, (96, 80))) for _ in range(6)]
    images += [images[0].copy(), images[1] // 2 + 20, images[2][:5], np.array(Image.fromarray(images[3]).convert("L"))]
    datamodule = Pixels(tmp_path / "x.npz", images, val_fraction=0.0)
    table, thumbnails = read_all(datamodule.read(), datamodule)
    assert duplicate_findings(table) == [("same, other class", ["0", "6"], "a or b")]
    alike = [names for _, names, _ in near_duplicate_findings(table, thumbnails, most=9)]
    assert alike == [["1", "7"], ["3", "9"]]
    assert image_findings(table, (32, 32), 16, 1e9, False) == [("tiny", ["8"], "96x5")]
    with caplog.at_level(logging.INFO):
        assert near_duplicate_findings(table, thumbnails, most=8) == []
    assert ["near_duplicates=true" in message for message in caplog.messages] == [True]


def test_a_split_file_decides_what_is_a_leak(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", classes=("blue", "red"), per_class=12)
    (root / "red" / "copy.jpg").write_bytes((root / "red" / "000.jpg").read_bytes())
    for part in ("train", "test"):
        rows = [f"{path.relative_to(root)},train" for path in sorted(root.rglob("0*.jpg"))]
        (tmp_path / "split.csv").write_text("\n".join(["path,split", *rows, f"red/copy.jpg,{part}"]))
        code = check(root, f"data.split_file={tmp_path / 'split.csv'}", "data.image_size=32").code
        assert code == (3 if part == "test" else 0)
        assert ("same in two parts" in found(root)) == (part == "test")
        assert ("same twice" in found(root)) == (part == "train")
    rows = [f"{path.relative_to(root)},{'val' if 'red' in path.parts else 'train'}" for path in root.rglob("0*.jpg")]
    (tmp_path / "split.csv").write_text("\n".join(["path,split", *rows]))
    check(root, f"data.split_file={tmp_path / 'split.csv'}")
    assert found(root)["untrained class"] == [{"red"}]
    assert found(root)["missing class"] == [{"blue"}]


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    cases = {
        "data.root=none": "none",
        "": "data.root=...",
        "data.root=photos json=photos/report.json": "json=photos/report.json",
        "data.root=photos json=photos": "json=photos",
        "data.root=photos json=..": "json=",
        "data.root=photos near_duplicates=maybe": "near_duplicates=maybe",
        "data.root=photos strict=maybe": "strict=maybe",
        "data.root=photos min_side=-1": "min_side=-1",
        "data.root=photos max_pixels=null": "max_pixels=",
        "data.root=photos max_pixels=many": "max_pixels=many",
        "data.root=photos near_duplicate=false": "near_duplicates",
        "data.root=photos data=foldr": "folder",
        "data.root=photos data.group_pattern=(": "data.group_pattern=(",
        "data.root=photos data.split_file=none.csv": "none.csv",
    }
    (tmp_path / "photos").symlink_to(folder)
    for arguments, said in cases.items():
        result = run(CHECK, *arguments.split(), cwd=tmp_path)
        assert result.code == 2, arguments
        (message,) = said_beside(result)
        assert message.startswith("error: ")
        assert said in message
        assert list(tmp_path.iterdir()) == [tmp_path / "photos"]


def test_an_experiment(dogs: Path, tmp_path: Path) -> None:
    """Its data is checked; what else it chooses is not looked at."""
    root = generate.copy(dogs, tmp_path / "dogs")
    settings = ("experiment=dogs_resnet", f"data.root={root}", "data.download=false", "json=report.json")
    result = run(CHECK, *settings, cwd=tmp_path)
    assert result.code in (0, 3), result.err
    assert report(root)["root"] == str(root)
    assert "33 boxes in 3 classes" in result.out


def test_one_class_and_none(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", classes=("red",), per_class=12)
    assert check(root).code == 3
    assert found(root)["one class"] == [{"red"}]
    for path in root.rglob("*.jpg"):
        path.write_bytes(struct.pack("B", 7))
    assert check(root).code == 3
    assert len(found(root)["unreadable"]) == 12
