"""Each source of data, trained and evaluated from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import generate
from tests.data import torchvision_layouts
from tests.verbs.command import BARE, evaluated, metrics, of_test, refuse, rows, succeed

SOURCES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "table": (generate.table, ("data.table=set/labels.csv", "data.path_column=file_name", "data.images=images")),
    "arrays": (lambda root: generate.arrays(root / "my set.npz", compressed=True), ("data.root=set/my set.npz",)),
    "torchvision": (torchvision_layouts.mnist, ("data.root=set", "data.name=FashionMNIST")),
    "coco": (generate.coco, ("data.root=set", "data.annotations={test: instances.json, train: other.json}")),
    "torchvision with options": (
        torchvision_layouts.emnist,
        ("data.root=set", "data.name=EMNIST", "data.options={split: digits}"),
    ),
    "annotation_crop": (generate.annotated, ("data.root=set", "data.image_sets=lists")),
}


def divide(root: Path) -> None:
    """Give COCO a second file, and PASCAL VOC lists, so that all here but the table have parts of their own."""
    if (root / "instances.json").is_file():
        for path in list((root / "images").iterdir()):
            path.with_name(f"more_{path.name}").write_bytes(path.read_bytes())
        other = (root / "instances.json").read_text().replace('"file_name": "', '"file_name": "more_')
        (root / "other.json").write_text(other)
    names = sorted(path.stem for path in (root / "annotations").glob("*.xml"))
    if names:
        (root / "lists").mkdir()
        (root / "lists/train.txt").write_text("\n".join(names[::2]))
        (root / "lists/test.txt").write_text("\n".join(names[1::2]))


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_trained_and_evaluated(source: str, tmp_path: Path) -> None:
    make, arguments = SOURCES[source]
    make(tmp_path / "set")
    divide(tmp_path / "set")
    common = (*BARE, "data.image_size=16", f"data={source.split()[0]}", *arguments)
    succeed("train", *common, "run_dir=run", cwd=tmp_path)
    assert of_test(evaluated(tmp_path)) == of_test(metrics(tmp_path / "run"))
    tested = rows(tmp_path / "out/predictions.csv")
    assert {row["path"] for row in tested} == {
        row["path"] for row in rows(tmp_path / "run/split.csv") if row["split"] == "test"
    }
    if source in ("coco", "annotation_crop"):
        assert abs(int(tested[0]["x2"]) - int(tested[0]["x1"]) - 30) <= 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("data=table",), "data.table="),
        (("data=coco", "data.root=."), "data.annotations="),
        (("data=torchvision",), "data.name="),
        (("data=table", "data.table=a b=(c.csv"), "a b=(c.csv"),
        (("data=coco", "data.root=.", "data.annotations=a b.json"), "a b.json"),
        (("data=arrays", "data.root=x.npz"), "x.npz"),
        (("data=torchvision", "data.name=MNIST"), "data.download=true"),
        (("data=torchvision", "data.name=MNIST", "data.options={trian: true}"), "trian"),
    ],
)
def test_what_is_missing_is_named(typed: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refuse("train", *BARE, *typed, "log_dir=../logs", cwd=tmp_path)  # as the data folder is this one
    assert list(tmp_path.iterdir()) == []
