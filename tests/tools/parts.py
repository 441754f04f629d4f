"""Helpers of the tests of scripts."""

from pathlib import Path

from classifier.data import ClassificationDataModule, ImageFolderDataModule
from tests.verbs.command import Result, run


def script(name: str, *arguments: str, cwd: Path) -> Result:
    """Run a script, which must succeed."""
    result = run(name, *arguments, cwd=cwd, folder="scripts")
    assert result.code == 0, result.err
    return result


def refusal(name: str, *arguments: str, cwd: Path) -> str:
    """Run a script, which must end with one message; that message."""
    result = run(name, *arguments, cwd=cwd, folder="scripts")
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    return result.err.partition("error: ")[2].strip()


def opened(root: Path, **settings: object) -> ClassificationDataModule:
    """A folder as training reads it."""
    datamodule = ImageFolderDataModule(root, **settings)  # type: ignore[arg-type]
    datamodule.setup()
    return datamodule


def parts(datamodule: ClassificationDataModule) -> dict[str, list[str]]:
    """Part -> <class>/<file name> of its samples, sorted."""
    table = datamodule.samples
    names = table["label"].astype("str") + "/" + table["path"].str.rpartition("/")[2]
    return {part: sorted(names[datamodule.rows(part)]) for part in datamodule.parts}


def files(root: Path) -> dict[str, bytes]:
    """Path -> content of everything below `root`."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
