"""python scripts/check_data.py: each fault is reported once, where it is, and a clean set not at all."""

import json
import logging
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.photos import photo
from classifier.data import ArrayDataModule, copies
from classifier.data.image import PillowImage, decode, everything
from classifier.data.image_facts import THUMBNAIL, image_facts
from classifier.tools.check_data import KINDS, duplicate_findings, near_duplicate_findings, read_all
from tests import generate
from tests.generate import save
from tests.tools.parts import files, refusal
from tests.verbs.command import Result, run


def check(root: Path, *arguments: str, data: str = "folder") -> Result:
    settings = (f"data={data}", f"data.root={root}", "data.image_size=64", f"json={root.parent / 'report.json'}")
    return run("check_data", *settings, *arguments, cwd=root.parent, folder="scripts")


def report(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root.parent / "report.json").read_text())
    return loaded


def found(root: Path) -> dict[str, list[set[str]]]:
    """Kind -> the names of each item."""
    return {kind["kind"]: [set(item["names"]) for item in kind["items"]] for kind in report(root)["found"]}


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
    def image(size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
        return photo(random, size).convert(mode)

    turned, alpha = Image.Exif(), image(mode="RGBA")
    turned[0x0112] = 6
    alpha.putalpha(200)
    deep = Image.fromarray(np.asarray(image(mode="L")).astype(np.uint16) * 257)
    forms: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("wrong extension", "png.jpg", image(), {"format": "PNG"}),
        ("several frames", "frames.webp", image(), {"save_all": True, "append_images": [image()]}),
        ("tiny", "tiny.jpg", image((12, 80)), {}),
        ("enlarged", "small.jpg", image((50, 80)), {}),
        ("huge", "huge.jpg", image((200, 150)), {}),
        ("turned by EXIF", "turned.jpg", image(), {"exif": turned}),
        ("16 bits", "deep.png", deep, {}),
        ("CMYK", "cmyk.jpg", image(mode="CMYK"), {}),
        ("palette", "palette.png", image(mode="P"), {}),
        ("transparency", "alpha.png", alpha, {}),
    ]
    for _, name, pixels, options in forms:
        save(pixels, root / "train" / "cat" / name, **options)
    return {kind: [{f"train/cat/{name}"}] for kind, name, _, _ in forms}


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
    shutil.rmtree(root / "test" / "owl")
    planted |= {"missing class": [{"owl"}], "few images": [{"rare"}], "imbalance": [{"cat", "rare"}]}
    before = files(root)
    result = check(root, "max_pixels=20000", "max_imbalance=5", r"data.group_pattern='(\w+)\.\w+$'")
    assert result.code == 3, result.err
    assert found(root) == planted
    assert files(root) == before
    assert [kind["kind"] for kind in report(root)["found"]] == [kind for kind in KINDS if kind in planted]
    details = {item["names"][0]: item["detail"] for kind in report(root)["found"] for item in kind["items"]}
    assert details["train/cat/a.jpg"] == "cat or dog"
    assert details["train/cat/c.jpg"] == "train and test"
    assert details["train/cat/png.jpg"] == "PNG content"
    assert details["train/cat/tiny.jpg"] == "12x80"
    assert all(kind in result.out for kind in (*planted, "(min_side)", "data.on_error=skip", "data.sampler=balanced"))
    assert max(len(line) for line in result.out.partition("severity")[2].splitlines() if str(root) not in line) <= 80
    shutil.move(root / "val" / "owl", root / "val" / "newt")
    before = files(root)
    result = check(root)
    assert (result.code, files(root)) == (2, before)
    assert "newt" in result.err
    (refused,) = (kind["items"] for kind in report(root)["found"] if kind["kind"] == "refused")
    assert "newt" in refused[0]["detail"]
    assert all(found(root)[kind] == planted[kind] for kind in ("empty file", "truncated", "unreadable", "palette"))


def test_nothing_is_found_in_a_clean_set(tmp_path: Path) -> None:
    """Several hundred different photographs, and blank ones, that are alike without being copies."""
    random = np.random.default_rng(1)
    root = tmp_path / "photos"
    for index in range(400):
        save(photo(random, (120, 90)), root / "abc"[index % 3] / f"{index}.jpg")
    for level in range(40, 220, 12):
        grey = random.normal(level, 2, (90, 120, 3)).clip(0, 255).astype(np.uint8)
        save(Image.fromarray(grey), root / "abc"[level % 3] / f"blank{level}.jpg")
    result = check(root, "strict=true")
    assert result.code == 0, result.err
    assert report(root)["found"] == []
    assert "415 images in 3 classes" in result.out
    *parts, number = report(root)["classes"]["b"].values()
    assert number == sum(parts) > 100


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
    for name in ("[red]x[red].jpg", "\udcff.jpg"):
        (root / "a" / name).touch()
    result = check(root)
    assert result.code == 3
    assert "[red]x[red].jpg" in result.out
    assert {r"a/\xff.jpg"} in found(root)["unusable annotation"]


def test_problems_are_counted_by_their_cause(tmp_path: Path) -> None:
    root = generate.table(tmp_path / "photos", per_class=12)
    lines = (root / "labels.csv").read_text().splitlines()
    lines += [*(f"{name},red" for name in ("a.jpg", "b 1.jpg", "c.png", "../../d.jpg")), "0000.jpg,blue,more", "1.jpg"]
    (root / "labels.csv").write_text("\n".join(lines))
    table = ("data.table=labels.csv", "data.path_column=file_name", "data.images=images")
    result = check(root, *table, data="table")
    heads = [line.split(maxsplit=2)[:2] for line in result.out.splitlines() if line.startswith("error")]
    assert heads == [["error", "3"], ["error", "2"], ["error", "1"]]
    assert len(found(root)["unusable annotation"]) == report(root)["error"] == 6
    (root / "split.csv").write_text("path,split\ngone.jpg,train")
    result = check(root, *table, f"data.split_file={root / 'split.csv'}", data="table")
    assert (result.code, report(root)["usable"]) == (2, 36)
    assert "data.split_file" in result.err
    (root / "labels.csv").write_text("file_name,label\n0000.jpg,\n")
    assert check(root, *table, data="table").code == 3
    assert report(root)["samples"] == 0


def test_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    root = tmp_path / "photos"
    names = [(name, index) for name in ("cat", "dog") for index in range(10)]
    objects = {f"{name}{index}": [(name, (11, 11, 100, 90))] for name, index in names}
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


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_file_is_decoded_once_for_all_its_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = save(photo(np.random.default_rng(8), (160, 120)), tmp_path / f"x.{suffix}")
    boxes = np.array([[0, 0, 40, 20], [60, 30, 150, 120], [100, 80, 300, 300]], np.int32)
    wanted = []
    for x1, y1, x2, y2 in np.clip(boxes, 0, (160, 120, 160, 120)).tolist():
        wanted.append(decode(path, (x1, y1, x2, y2), everything, (THUMBNAIL, THUMBNAIL), channels=1)[0])
    reads: list[object] = []
    read = PillowImage.read

    def counted(*arguments: Any, **named: Any) -> np.ndarray:
        reads.append(arguments)
        return read(*arguments, **named)

    monkeypatch.setattr(PillowImage, "read", counted)
    found = image_facts(path, boxes).thumbnails
    assert len(reads) == 1
    # JPEGs were decoded at half their size for some
    assert np.abs(found.astype(int) - np.stack(wanted)).mean() < (2 if suffix == "jpg" else 0.01)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])  # cut off beyond all boxes, too
    assert image_facts(path, boxes).notes == image_facts(path).notes != {}


def test_images_that_are_not_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.stack([np.array(photo(np.random.default_rng(seed), (96, 80))) for seed in range(6)])
    np.save(tmp_path / "X_train.npy", np.concatenate([images, images[:1], images[1:2] // 2 + 20]))
    np.save(tmp_path / "Y_train.npy", np.array(["a"] * 6 + ["b"] * 2))
    datamodule = ArrayDataModule(tmp_path, val_fraction=0.0, test_fraction=0.0)
    table, thumbnails = read_all(datamodule.read(), datamodule, [])
    assert duplicate_findings(table) == [("same, other class", ["X_train/00000", "X_train/00006"], "a or b")]
    alike = near_duplicate_findings(table, thumbnails, most=8)
    assert alike == [("alike, other class", ["X_train/00001", "X_train/00007"], "a or b")]
    with caplog.at_level(logging.INFO):
        assert near_duplicate_findings(table, thumbnails, most=7) == []
    assert "near_duplicates=true" in caplog.text


def test_a_split_file_decides_what_is_a_leak(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", classes=("blue", "red"), per_class=12)
    (root / "red" / "copy.jpg").write_bytes((root / "red" / "000.jpg").read_bytes())
    for red, part in (("train", "train"), ("train", "test"), ("val", "val")):
        rows = [f"blue/{number:03d}.jpg,train\nred/{number:03d}.jpg,{red}" for number in range(12)]
        (tmp_path / "split.csv").write_text("\n".join(["path,split", *rows, f"red/copy.jpg,{part}"]))
        code = check(root, f"data.split_file={tmp_path / 'split.csv'}").code
        assert code == (0 if red == part == "train" else 3)
        assert ("same in two parts" in found(root)) == (red != part)
        assert ("same twice" in found(root)) == (red == part)
    assert found(root)["untrained class"] == [{"red"}]
    assert found(root)["missing class"] == [{"blue"}]


def test_leaks_are_mended_by_what_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = generate.image_folder(tmp_path / "photos", classes=("blue", "red"), per_class=12)
    for number in range(12):
        shutil.copy(root / "red" / f"{number:03d}.jpg", root / "red" / f"copy{number}.jpg")
    assert "data.group_duplicates=true" in check(root).out
    assert "same in two parts" in found(root)
    read: list[object] = []
    monkeypatch.setattr(copies, "image_facts", lambda *one: read.append(one) or image_facts(*one))  # type: ignore[func-returns-value]
    check(root, "data.group_duplicates=true")
    assert len(read) == 36
    assert len(found(root)["same twice"]) == 12
    assert "same in two parts" not in found(root)


def test_one_class(tmp_path: Path) -> None:
    root = generate.image_folder(tmp_path / "photos", classes=("red",), per_class=12)
    result = check(root)
    assert result.code == 3
    assert "12 images in 1 class, 1 error, 12 notes" in result.out
    assert found(root)["one class"] == [{"red"}]


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(folder)
    wrong = ("json=photos/report.json", "json=photos", "near_duplicates=maybe", "min_side=-1", "max_pixels=many")
    for argument in (*wrong, "data.root=none"):
        assert argument.removeprefix("data.root=") in refusal("check_data", "data.root=photos", argument, cwd=tmp_path)
        assert list(tmp_path.iterdir()) == [tmp_path / "photos"]
