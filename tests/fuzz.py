"""Mutants of the files that data sets, runs and checkpoints are made of, each read by what reads the real ones.

    PYTHONPATH=src python -m tests.fuzz KIND SEED     repeats a failure, in a temporary folder

A mutant is a function of its kind and seed. It has to give a valid value or one UserError, within SECONDS of processor
time and the memory that the caller allows, and nothing may be written elsewhere than in the cache. To try another kind
of file, or another setting of a data set, add it to KINDS.
"""

import copy
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from base64 import b85encode
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from classifier import data, runs
from classifier.data.loader import training_weights
from classifier.data.samples import SPLITS, boxes_of, fingerprint, usable
from classifier.data.split import read_split, write_split
from classifier.errors import UserError
from classifier.tools.leaderboard import compare
from classifier.training import checkpoints
from classifier.untrusted import known_targets, require_plain
from classifier.verbs import evaluate
from tests import generate
from tests.data.tables import make_table
from tests.tools.parts import files
from tests.training.runs import make_classifier

SECONDS = 5.0
# texts that something may take for more, or for less, than they are
TEXTS = [*",;|'~\t\r\n\0 \x1a\x85\u2028\ufeff\u202e\u200b\uff11é", '"', '""', "", "0", "-1", "1.5", "1e999", "nan",
         "inf", "1_0", "null", "None", "[]", "{}", "true", "\r\n", "e\u0301", "../../x", "/etc/passwd", "C:\\x", ".",
         "..", "x/", "${oc.env:HOME}", "\\ud800", "\\u0000", "&#0;", "&lt;", "<!-- ", "<![CDATA[", "]]>", "_target_",
         "images", "=1+1", "blue"]  # fmt: skip
PIECES = [*map(str.encode, TEXTS), b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xff\xfe", b"\x80\x04", b"9" * 5000,
          b"x" * 70_000, b"[" * 100_000, b'{"a":' * 30_000, b"<a>" * 30_000, b"- " * 30_000]  # fmt: skip
VALUES = [*TEXTS, "\ud800", "x" * 9000, None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**400, np.nan, np.inf, [], {},
          [[]], [None], {"_target_": "os.getcwd"}, ["a"] * 1000, dict.fromkeys(map(str, range(1000)))]  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp949", "utf-7", "cp037", "latin-1")


def spoilt(random: Random, content: bytes) -> bytes:
    """Bytes, or words and numbers, removed, repeated, moved, flipped, or with something odd beside them."""
    parts = re.findall(random.choice((rb".", rb"[\w.+-]+|\s+|.")), content, re.DOTALL)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at, other = random.randrange(len(parts) + 1), random.randrange(len(parts) + 1)
        length, odd, times = random.choice((1, 1, 5, 40, len(parts))), random.choice(PIECES), random.choice((1, 1, 100))
        taken, others = parts[at : at + length], parts[other : other + min(length, 40)]
        flipped = [bytes(byte ^ (1 << random.randrange(8)) for byte in part) for part in taken[:1]] + taken[1:]
        parts[at : at + length] = random.choice(([], others, taken + others * times, [odd], [odd, *taken], flipped))
    content = b"".join(parts)
    code = random.choice(ENCODINGS) if random.random() < 0.1 else None
    return content.decode("utf-8", "replace").encode(code, "replace") if code else content


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each container in a tree, with each key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in ((tree, key), *places(value))]


def reshaped(random: Random, tree: Any) -> Any:
    """Values removed, renamed, exchanged for others of this tree or for odd ones, or with more layers around them."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 3))):
        (holder, key), (other, other_key) = random.choice(places(tree)), random.choice(places(tree))
        value, moved = holder[key], other[other_key]
        deep = holder.pop(key)
        for _ in range(random.choice((1, 2, 100, 400))):
            deep = random.choice(([deep], {"a": deep}))
        odd, tensors = random.choice(VALUES), [torch.zeros(1).expand(10**6, 10**3)]
        if isinstance(value, torch.Tensor):
            tensors += [value.double(), value.to_sparse(), value[None], value.flatten(), value.to("meta"), value > 0]
            odd = random.choice(tensors)
        new = copy.deepcopy(random.choice((odd, odd, deep, moved)))
        if isinstance(holder, list):
            holder[key:key] = random.choice(([], [new], [new, value]))
        elif random.random() < 0.8:
            holder[random.choice((key, key, key, "_target_", "a", 1, "\ud800"))] = new
    return tree


def recast(random: Random, array: np.ndarray) -> np.ndarray:
    """An array of another type or shape, or with other values."""
    kind = random.choice(("?", "b", "u1", "u2", ">i4", "i8", "u8", "f2", "f8", "c16", "O", "U", "S", "M8[s]", "m8[s]"))
    value: Any = random.choice((np.nan, -1, 2**62, 1e300, "\ud800", "", b"\xff", None))
    shape = random.choice((-1, (1, -1), (-1, 1), (*array.shape, 1), (*array.shape[::-1],)))
    changes: list[Callable[[], np.ndarray]] = [
        lambda: array.astype(kind), lambda: array.reshape(shape), lambda: array.astype([("a", array.dtype)]),
        lambda: array[random.choice((slice(0), slice(1, None), 0, None))], lambda: np.array(array.flat[0]),
        lambda: np.where(array == array.flat[0], value, array), lambda: np.full_like(array, array.flat[0]),
    ]  # fmt: skip
    return random.choice(changes)()


def rezipped(random: Random, content: bytes) -> bytes:
    """A .zip whose checksums are right, with a member spoilt, renamed or there twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen, other = random.choice(names), random.choice(("../../evil.npy", "/tmp/evil.npy", "x/y.npy", "", *names))
        for name in names:
            member, renamed = source.read(name), name == chosen and random.random() < 0.3
            target.writestr(other if renamed else name, spoilt(random, member) if name == chosen else member)
    return out.getvalue()


def rebuilt(random: Random, suffix: str, content: bytes) -> bytes:
    """What a file holds, changed and written again as such a file should be."""
    out = io.BytesIO()
    if suffix in (".json", ".jsonl"):
        return json.dumps(reshaped(random, json.loads(content))).encode()
    if suffix == ".yaml":
        return yaml.safe_dump(reshaped(random, yaml.safe_load(content)), sort_keys=False).encode()
    if suffix in (".npz", ".ckpt") and random.random() < 0.3:
        return rezipped(random, content)
    if suffix == ".ckpt":
        torch.save(reshaped(random, torch.load(io.BytesIO(content), weights_only=True)), out)
    elif suffix == ".npz":
        arrays = dict(np.load(io.BytesIO(content)))
        name = random.choice([*arrays])
        np.savez(out, allow_pickle=True, **{**arrays, name: recast(random, arrays[name])})
    elif suffix == ".parquet":
        table = pd.read_parquet(io.BytesIO(content))
        name = random.choice([*table])
        table.assign(**{name: recast(random, table[name].to_numpy())}).to_parquet(out)
    return out.getvalue() or spoilt(random, content)


def mutant(random: Random, suffix: str, content: bytes) -> bytes:
    with suppress(Exception):  # some cannot be written
        if random.random() < 0.6:
            return rebuilt(random, suffix, content)
    return spoilt(random, content) if random.random() < 0.98 else b""


def require_valid(module: data.ClassificationDataModule) -> None:
    """A table that is read without an error is one that can be trained on, written and read again."""
    module.setup()
    table, boxes, split = module.samples, boxes_of(module.samples), Path("cache", "split.csv")
    assert len(module.classes) > 1
    assert table["split"].dropna().isin(SPLITS).all()
    assert not table["path"].str.contains(r"^/|^\.\.(?:/|$)|/\.\.(?:/|$)").any()
    "".join([*module.classes, *module.skipped["path"], *module.skipped["problem"]]).encode()
    assert boxes is None or ((boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all())
    assert len(fingerprint(table)) == 64
    write_split(split, table)
    assert read_split(split, table).fillna("").tolist() == table["split"].fillna("").tolist()
    module.preprocessing(module.image(0), module.box(0))


def reader(kind: type[data.ClassificationDataModule], **options: tuple[Any, ...]) -> Callable[[Path, Random], None]:
    """What reads a data set with one choice of each of the options."""

    def read(file: Path, random: Random) -> None:
        chosen = {key: random.choice(values) for key, values in options.items()}
        chosen |= {"table": str(file)} if kind is data.TableDataModule else {}
        root = file if kind is data.ArrayDataModule else Path("data")
        module = kind(root, image_size=8, cache_dir="cache", on_error=random.choice(("raise", "skip")), **chosen)
        if random.random() < 0.4:
            require_valid(module)
        else:  # a third of the time
            table = module.read()
            good = table[usable(table)]
            "".join([*table["path"], *good["label"], *table.get("problem", good["path"]).dropna()]).encode()

    return read


def attempt(*functions: Callable[[], object]) -> None:
    """Call each, whether or not those before it were refused."""
    for function in functions:
        with suppress(UserError):
            function()


def make_voc(root: Path) -> None:
    generate.annotated(root, per_class=2)
    for part, number in (("train", 0), ("val", 1)):
        root.joinpath(f"{part}.txt").write_text("".join(f"{name}_{number:03d}\n" for name in generate.CLASSES))


def make_tables(root: Path) -> None:
    generate.table(root, per_class=2)
    table = pd.read_csv(root / "labels.csv", dtype=str).rename(columns={"file_name": "path"})
    table = table.assign(x1=2, y1=3.5, x2=30, y2=20, split=["train", "val"] * 3, group=[*"aabbcd"])
    table.to_csv(root / "labels.csv", index=False)
    table.to_csv(root / "labels.tsv", index=False, sep="\t")
    table.to_parquet(root / "labels.parquet")


SAMPLES = make_table(["a/1.jpg", "a/2.jpg", "b/1,x.jpg", "b/2.jpg"], [0, 0, 1, 1], boxes=[[0, 0, 4, 5]] * 4)


def make_lists(root: Path) -> None:
    write_split(root / "split.csv", SAMPLES.assign(split=["train", "train", "val", "test"]))
    SAMPLES.assign(weight=[1, 0.5, 2, 0])[["path", "weight"]].to_csv(root / "weights.csv", index=False)


def read_list(file: Path, random: Random) -> None:
    if file.stem == "split":
        assert read_split(file, SAMPLES).dropna().isin(SPLITS).all()
    else:
        found = training_weights(SAMPLES, np.arange(4), "weighted", str(file))
        assert found is not None
        assert np.isfinite(found).all()
        assert found.min() >= 0 < found.max()


CONFIG = {
    "seed": 0, "run_dir": "data/logs/a", "monitor": "val/acc", "mode": "max", "trainer": {"precision": "32-true"},
    "data": {"_target_": "classifier.data.ImageFolderDataModule", "root": "photos", "batch_size": 4, "ema": None},
    "model": {"_target_": "classifier.models.SimpleCNN", "widths": [4, 8]},
}  # fmt: skip
classifier = cache(make_classifier)


def make_checkpoint(root: Path) -> None:
    model = classifier()
    record = {"config": CONFIG, "data_fingerprint": "0" * 64, "metrics": {"val/acc": 0.5}, "versions": {"torch": "2"}}
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "epoch": 0, "run": record}
    torch.save(content, root / "best.ckpt")


def read_checkpoint(file: Path, random: Random) -> None:
    def run_model() -> None:
        model, _ = checkpoints.open_model(file)
        assert model(model.example_input_array).shape == (1, len(model.classes))

    def resume() -> None:
        checkpoints.require_same_model(checkpoints.read_checkpoint(file), classifier(), file)

    attempt(run_model, resume)
    attempt(lambda: evaluate.stored_values(file), lambda: checkpoints.init_from(classifier(), file))


def make_run(root: Path) -> None:
    for name in "ab":
        run = root / "logs" / name
        run.mkdir(parents=True)
        run.joinpath("config.yaml").write_text(yaml.safe_dump(CONFIG))
        run.joinpath("metrics.csv").write_text("epoch,step,val/acc,val/loss\n1,3,0.25,\n2,6,0.5,1e-3\n")
        run.joinpath("starts.jsonl").write_text(json.dumps({"time": "now", "overrides": ["seed=0"], "git": None}))
    run.joinpath("metrics.json").write_text(json.dumps({"val/acc": 0.5, "test/acc": 0.75, "epoch": 3}))


def read_run(file: Path, random: Random) -> None:
    run, logs = file.parent, file.parents[1]

    def resume() -> None:
        stored = runs.stored_config(run)
        require_plain(stored, "", known_targets("**"))
        attempt(lambda: runs.require_changeable(stored, CONFIG), lambda: runs.require_changeable(CONFIG, stored))

    attempt(resume, lambda: runs.find_run("latest", logs), lambda: runs.find_same_run(["seed=0"], logs, None))
    options: list[dict[str, Any]] = [{}, {"csv": "-"}, {"over": ["seed"]}]
    attempt(lambda: compare(logs, **random.choice(options)))


CORNERS = ["x1", "y1", "x2", "y2"]
# kind -> what writes the originals, which of them are spoilt, what reads one
KINDS: dict[str, tuple[Callable[[Path], object], str, Callable[[Path, Random], None]]] = {
    "voc": (make_voc, "annotations/*", reader(data.AnnotationCropDataModule, objects=("all", "largest"),
            margin=(0.0, 0.5), class_from=("name", "name", "folder"), truncated=("keep", "skip"))),
    "image_sets": (make_voc, "*.txt", reader(data.AnnotationCropDataModule, image_sets=(".",))),
    "coco": (lambda root: generate.coco(root, per_class=2), "*.json", reader(data.CocoDataModule,
             annotations=("instances.json",), objects=("all", "largest"), crowd=("keep", "skip"))),
    "table": (make_tables, "labels.*", reader(data.TableDataModule, images=("images",), box_columns=(None, CORNERS),
              box_format=("xyxy", "xywh"), split_column=(None, "split"), group_column=(None, "group"))),
    "arrays": (lambda root: generate.arrays(root / "some.npz", per_class=4), "*.npz", reader(data.ArrayDataModule,
               value_range=(None, None, [0, 255]), classes_key=("classes", None))),
    "lists": (make_lists, "*.csv", read_list),
    "checkpoint": (make_checkpoint, "*.ckpt", read_checkpoint),
    "run": (make_run, "logs/*/*", read_run),
}  # fmt: skip
TOUCHED: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened for writing elsewhere than in the cache, what is started, what is asked of a network."""
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if written and os.path.realpath(str(arguments[0])).startswith(os.path.realpath("cache")):
        return
    if written or event in ("subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"):
        TOUCHED.append(f"{event} {arguments}")


def failure(kind: str, seed: int) -> tuple[str, str] | None:
    """What is wrong with how one mutant is read, and how to repeat it; None where nothing is."""
    random, found = Random(f"{kind} {seed}"), ""
    file = random.choice(sorted(Path("data").glob(KINDS[kind][1])))
    original = file.read_bytes()
    content = mutant(random, file.suffix, original)
    file.write_bytes(content)
    TOUCHED.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends this process
    try:
        KINDS[kind][2](file, random)
    except UserError:
        pass
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        found = "".join(traceback.format_list(frames[-3:])) + f"{type(error).__name__}: {error!s:.200}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    found += "".join(TOUCHED)
    file.write_bytes(original)
    return (found, f"{kind} {seed}: {file} in base85 {b85encode(content).decode():.4000}") if found else None


def main(kinds: str, first: str, count: str = "1") -> int:
    """Print an example of each failure; the exit code."""
    logging.disable()
    sys.addaudithook(watch)
    failures: dict[str, list[str]] = {}
    for kind in kinds.split(","):
        Path("data").mkdir()
        KINDS[kind][0](Path("data"))
        before = files(Path())
        Path("cache").mkdir()
        for seed in range(int(first), int(first) + int(count)):
            print(kind, seed, flush=True)  # the last one is the culprit, should the process be ended
            with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()), redirect_stderr(sys.stdout):
                if failed := failure(kind, seed):
                    failures.setdefault(failed[0], []).append(failed[1])
        shutil.rmtree("cache")
        assert files(Path()) == before, f"{kind}: something was written"
        shutil.rmtree("data")
    for found, mutants in failures.items():
        print(f"\n{found}\n{len(mutants)} times, such as {mutants[0]}")
    return 1 if failures else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        sys.exit(main(*sys.argv[1:]))
