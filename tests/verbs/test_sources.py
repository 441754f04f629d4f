"""Each source of data, trained and evaluated from the command line."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import generate
from tests.data import torchvision_layouts
from tests.verbs.command import QUICK, metrics, run

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
    common = (
        "experiment=folder_cnn",
        "model=simple_cnn",
        *QUICK,
        "data.image_size=16",
        f"data={source.split()[0]}",
        *arguments,
    )
    result = run("train", *common, "run_dir=run", cwd=tmp_path)
    assert result.code == 0, result.err
    result = run("eval", "ckpt_path=run", "trainer=cpu", "output_dir=out", cwd=tmp_path)
    assert result.code == 0, result.err
    trained, evaluated = metrics(tmp_path / "run"), metrics(tmp_path / "out")
    assert evaluated["test/acc"] == trained["test/acc"]
    assert evaluated["test/loss"] == trained["test/loss"]
    with (tmp_path / "out/predictions.csv").open() as file:
        tested = {row["path"] for row in csv.DictReader(file)}
    with (tmp_path / "run/split.csv").open() as file:
        assert tested == {row["path"] for row in csv.DictReader(file) if row["split"] == "test"}


def test_another_table_is_other_data(tmp_path: Path) -> None:
    """Although neither has a root: all its images are new, and the run's split is not of it."""
    generate.table(tmp_path / "set")
    generate.table(tmp_path / "new", per_class=3)
    arguments = ("data=table", "data.table=set/labels.csv", "data.path_column=file_name", "data.images=images")
    common = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, *arguments)
    assert run("train", *common, "run_dir=run", cwd=tmp_path).code == 0
    result = run("eval", "ckpt_path=run", "data.table=new/labels.csv", "trainer=cpu", "output_dir=out", cwd=tmp_path)
    assert result.code == 0, result.err
    with (tmp_path / "out/predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data=table",), "type data.table="),
        (("data=coco", "data.root=."), "type data.annotations="),
        (("data=torchvision",), "type data.name="),
        (("data=table", "data.table=a b=(c.csv"), "the table a b=(c.csv does not exist"),
        (("data=coco", "data.root=.", "data.annotations=a b.json"), "a b.json does not exist"),
        (("data=arrays", "data.root=x.npz"), "x.npz does not exist"),
        (("data=torchvision", "data.name=MNIST"), "use data.download=true"),
        (("data=torchvision", "data.name=MNIST", "data.options={trian: true}"), "did you mean train"),
    ],
)
def test_what_is_missing_is_told(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = run("train", "experiment=folder_cnn", "model=simple_cnn", *QUICK, *arguments, cwd=tmp_path)
    assert result.code == 2, result.out + result.err
    assert result.err.startswith("error: ")
    assert said in result.err
    assert list(tmp_path.iterdir()) == []
