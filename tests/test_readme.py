"""The commands and snippets of the README and of docs/, as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import generate
from tests.verbs.command import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    texts = [text for language, text in blocks(page) if language == "bash"]
    return [line.split("  #")[0].strip() for text in texts for line in text.splitlines()]


COMMANDS = commands(README)
# what makes a training short, and spares it the hub, that the machine of the tests may lack
SHORT = {
    "experiment=": ["trainer=cpu", "trainer.max_epochs=1", "data.image_size=96", "data.batch_size=4",
                    "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"],
    "experiment=folder_finetune": ["model.pretrained=false"],
    "experiment=dogs": ["model.pretrained=false"],
    "data=pasted_digits": ["trainer=cpu", "trainer.max_epochs=1"],
    "-m": ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"],
}  # fmt: skip


def shortened(command: str) -> list[str]:
    words = shlex.split(command)
    if words[:2] == ["python", "src/train.py"]:
        for start, extra in SHORT.items():
            if any(word.startswith(start) for word in words):
                words += extra
    return words


@pytest.fixture(scope="module")
def clone(folder: Path, annotated: Path, dogs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files, with the data that the README speaks of and the files that it says to write."""
    root = tmp_path_factory.mktemp("readme") / "template"
    for name in ("src", "configs", "scripts"):
        generate.copy(REPOSITORY / name, root / name)
    generate.copy(folder, root / "my_photos")
    generate.copy(annotated, root / "my_boxes")
    generate.copy(dogs, root / "data" / "stanford_dogs")
    lines = [f"{path.relative_to(root / 'my_photos')},{path.parent.name}" for path in root.glob("my_photos/*/*.jpg")]
    (root / "my_photos" / "train_df.csv").write_text("\n".join(["file_name,label", *lines]))
    names = [path.name for path in (root / "my_boxes" / "images").iterdir()]
    lines = [f"{name},{name.split('_')[0]},2,2,40,40" for name in names]
    (root / "my_boxes" / "images" / "boxes.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *lines]))
    generate.coco(root / "my_coco")
    generate.tagged(root / "my_tags")
    generate.arrays(root / "my_arrays.npz")
    for language, text in [block for page in (README, *PAGES.values()) for block in blocks(page)]:
        path = re.search(r"^# ((?:src|configs)/\S+)$", text, re.MULTILINE)
        if language in ("yaml", "python") and path:
            (root / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1]).write_text(text)
    return root


def execute(words: list[str], cwd: Path, given: str = "", *path: Path) -> str:
    """Run a command of this environment, with `given` on stdin; Python looks into `path` first. What it printed."""
    places = os.pathsep.join(map(str, path)) or os.environ.get("PYTHONPATH", "")
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": places}
    done = subprocess.run(words, cwd=cwd, env=environment, input=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


# many commands in one process, which imports torch once, from the clone: with what the pages say to write
IN_ONE_PROCESS = """
import json, sys
from pathlib import Path
from tests.verbs.command import run
for verb, *arguments in json.load(sys.stdin):
    script, here = Path(verb), Path.cwd()
    result = run(script.stem, *arguments, cwd=here, folder=script.parent.name, root=here)
    if result.code:
        sys.exit(f"{verb} {' '.join(arguments)}\\n{result.out}{result.err}")
"""


def do(commands: list[str], clone: Path) -> None:
    """Run commands that begin with `python`, in their order."""
    words = [shortened(command)[1:] for command in commands]
    path = (clone / "src", clone / "scripts", REPOSITORY)
    execute(["python", "-c", IN_ONE_PROCESS], clone, json.dumps(words), *path)


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 260


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 12
    assert all(
        command.startswith(("git clone ", "cd ", "make ", "python src/", "python scripts/", "tensorboard "))
        for command in COMMANDS
    )


def test_make_targets_exist() -> None:
    targets = re.findall(r"\bmake ([a-z-]+)", README)
    assert set(targets) == {"train", "test", "test-slow", "lint"}
    for target in targets:
        execute(["make", "--dry-run", target], REPOSITORY)


@pytest.mark.slow
def test_commands(clone: Path) -> None:
    """In the README's order, as later ones use what earlier ones made."""
    typed = {
        "make train": "python src/train.py trainer.max_epochs=2",  # what it does, in this environment
        # the latest run is then one on photographs of the same classes
        "new_photos": "python src/train.py experiment=folder_cnn data.root=my_photos",
    }
    generate.copy(clone / "my_photos", clone / "new_photos")
    inserted = [[text for word, text in typed.items() if word in command] + [command] for command in COMMANDS]
    do([command for commands in inserted for command in commands if command.startswith("python")], clone)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, page in PAGES.items() if commands(page)])
def test_commands_of_the_docs(clone: Path, page: str) -> None:
    found = commands(PAGES[page])
    assert all(command.startswith(("python src/", "python scripts/")) for command in found)
    do(found, clone)
    used = [text for language, text in blocks(PAGES[page]) if language == "python" and not text.startswith("# src/")]
    execute(["python", "-c", "\n".join(used)], clone, "", clone / "src")


@pytest.mark.slow
def test_several_labels_are_learnt(clone: Path) -> None:
    """In two minutes on two cores: the digits of the page, two or three in a picture."""
    (command,) = [
        found for found in commands(PAGES["multi_label.md"]) if "data=pasted_digits" in found and "avg" in found
    ]
    execute([*shlex.split(command), "trainer=cpu", "run_dir=several"], clone, "", clone / "src")
    assert json.loads((clone / "several" / "metrics.json").read_text())["test/map"] >= 0.95


@pytest.mark.slow
def test_use_from_python(clone: Path) -> None:
    do(["python src/train.py experiment=folder_cnn data.root=my_photos run_dir=used"], clone)
    (snippet,) = [text for language, text in blocks(README) if language == "python" and "load_from_checkpoint" in text]
    work = clone / "elsewhere"
    work.mkdir()
    (clone / "used" / "checkpoints" / "best.ckpt").rename(work / "best.ckpt")
    generate.save(generate.picture("red"), work / "photo.jpg")
    assert execute(["python", "-c", snippet], work).strip() in generate.CLASSES


def test_every_experiment_is_in_the_table() -> None:
    table = README.partition("## Experiments")[2].partition("\nStanford Dogs")[0]
    named = {
        name for row in table.splitlines() if row[:3] == "| `" for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert {path.stem for path in (REPOSITORY / "configs" / "experiment").glob("*.yaml")} == named


def test_nothing_is_left_to_fill_in() -> None:
    for page in (README, *PAGES.values()):
        assert not re.search(r"\b(TODO|TBD|FIXME|MEASURED|RESNET|PHOTOS|TUTORIAL)\b", page)
