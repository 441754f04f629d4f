"""A checkpoint from a stranger: whatever stands in it, eval and predict call, write and fetch nothing that it names."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch

from classifier.data import DigitsDataModule
from classifier.errors import UserError
from classifier.runs import leaves
from classifier.training import ImageClassifier, checkpoints
from classifier.verbs import evaluate, predict
from tests import generate
from tests.data import server
from tests.verbs.command import QUICK, metrics, of_test, refuse, succeed

TRACES = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "socket.__new__", "socket.getaddrinfo",
          "urllib.Request", "shutil.copyfile", "pickle.find_class"}  # fmt: skip
READING = {"image_size", "resize", "crop_pct", "interpolation", "channels", "batch_size", "on_error"}


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.target, "code ran")


@pytest.fixture(scope="module")
def cwd(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, run/ trained on them, and bait.*, files that write `evil` when opened."""
    cwd = tmp_path_factory.mktemp("planted")
    generate.copy(folder, cwd / "photos")
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "run_dir=run")
    succeed("train", *arguments, "data.limit_per_class=9", cwd=cwd)
    payload = Payload(cwd / "evil")
    torch.save(payload, cwd / "bait.pth")
    (cwd / "bait.pkl").write_bytes(pickle.dumps(payload))
    np.save(cwd / "bait.npy", np.array([payload], dtype=object))
    return cwd


@pytest.fixture(scope="module")
def checkpoint(cwd: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(cwd / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    return loaded


_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    written = event == "open" and isinstance(arguments[1], str) and not {*"wax+"}.isdisjoint(arguments[1])
    if _seen is not None and (event in TRACES or written):
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # there is no way to remove one


@contextmanager
def traces() -> Iterator[list[str]]:
    """What Python reports meanwhile: files that are written, processes, sockets, pickles that name something."""
    global _seen
    seen: list[str] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


def calls(cwd: Path) -> dict[str, dict[str, Any]]:
    """What Hydra, given the chance, would call; each leaves a trace."""
    bait, evil, url = str(cwd / "bait.pth"), str(cwd / "evil"), "http://localhost:9/evil"
    weights = {"model": {"_target_": "torch.nn.Identity"}, "checkpoint_path": bait, "weights_only": False}
    pickle = {"f": bait, "weights_only": False}
    path = {"_target_": "pathlib.Path", "_args_": [evil]}
    return {
        "weights": {"_target_": "timm.models.load_checkpoint", **weights},
        "load": {"_target_": "torch.load", **pickle},
        "nested": {"_target_": "torch.nn.functional.torch.load", **pickle},
        "numpy": {"_target_": "numpy.load", "file": str(cwd / "bait.npy"), "allow_pickle": True},
        "pickle": {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(cwd / "bait.pkl")},
        "run": {"_target_": "torch.nn.functional.torch.utils.collect_env.run", "command": f"touch {evil}"},
        "copy": {"_target_": "shutil.copyfile", "src": bait, "dst": evil},
        "write": {"_target_": "pathlib.Path.write_text", "self": path, "data": "x"},
        "log": {"_target_": "logging.FileHandler", "filename": evil},
        "fetch": {"_target_": "urllib.request.urlopen", "url": url},
        "hub": {"_target_": "torch.hub.download_url_to_file", "url": url, "dst": evil},
    }


def attack(cwd: Path) -> dict[str, Any]:
    return calls(cwd)["weights"]


def planted(checkpoint: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the checkpoint with `value` in this place."""
    changed = dict(checkpoint)
    node = changed
    for key in path[:-1]:
        node[key] = node = dict(node[key])
    node[path[-1]] = value
    return changed


def places(checkpoint: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every key of the stored config and of the model's arguments, at any depth, and keys that are not there."""
    found = [("run", "config", *key.split(".")) for key in leaves(checkpoint["run"]["config"], sections=True)]
    found += [("hyper_parameters", *key.split(".")) for key in leaves(checkpoint["hyper_parameters"], sections=True)]
    sections = [("run", "config"), ("run", "config", "data"), ("run", "config", "trainer"), ("hyper_parameters",),
                ("hyper_parameters", "model"), ("hyper_parameters", "preprocessing")]  # fmt: skip
    new = ("_target_", "_args_", "_recursive_", "defaults", "hydra", "/trainer@_global_", "cache_dir@_global_", "loss",
           "hydra@_global_")  # fmt: skip
    return found + [(*section, key) for section in sections for key in new]


def test_each_call_would_leave_a_trace(cwd: Path) -> None:
    assert len(calls(cwd)) >= 10
    for name, call in calls(cwd).items():
        with traces() as seen, suppress(Exception):
            hydra.utils.instantiate(call)
        assert seen, name
        (cwd / "evil").unlink(missing_ok=True)


def test_at_every_key(cwd: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to Hydra is what it is without the attack, and so is what is built; or the file is refused."""
    path = cwd / "planted.ckpt"
    opened = checkpoint
    for module in (evaluate, predict, checkpoints):  # what a file holds, without writing it 3,000 times
        monkeypatch.setattr(module, "read_checkpoint", lambda path: opened)
    clean, network, all_places = evaluate.stored_values(path), str(checkpoints.open_model(path)[0]), places(checkpoint)
    stored = leaves(checkpoint["hyper_parameters"]).keys()
    hydra_keys = {"callbacks": {"evil": attack(cwd)}, "job_logging": attack(cwd), "run": {"dir": "evil"}}
    values = [*calls(cwd).values(), {"a": [attack(cwd)]}, "${oc.env:HOME}", {"hydra": hydra_keys}, hydra_keys]
    values += [
        {"defaults": [{"/trainer@_global_": "ddp"}]},
        {"defaults": ["_self_"], "@_global_": {"hydra": hydra_keys}},
    ]
    refused = 0
    with traces() as seen:
        for place in all_places:
            for value in values:
                opened = planted(checkpoint, place, value)
                try:
                    assert evaluate.stored_values(path) == clean, place
                    if place[0] == "hyper_parameters" and (
                        place[-1] in stored or value is values[0]
                    ):  # building is slow
                        assert str(checkpoints.open_model(path)[0]) == network, place
                except UserError:
                    refused += 1
    assert seen == []
    assert len(all_places) > 150
    assert 0 < refused < len(values) * len(all_places) / 2, "most keys are not looked at"


def test_without_a_key(cwd: Path, checkpoint: dict[str, Any]) -> None:
    """What is left out does not become what the network does by default, such as to fetch weights."""
    stored = {"_target_": "classifier.models.timm_model", "name": "resnet18.a1_in1k"}
    torch.save(planted(checkpoint, ("hyper_parameters", "model"), stored), cwd / "timm.ckpt")
    with traces() as seen, pytest.raises(UserError, match="timm"):
        checkpoints.open_model(cwd / "timm.ckpt")
    assert seen == []


MADE_UP = [
    (("preprocessing", "image_size"), [10**9, 10**9]),
    (("preprocessing", "image_size"), [1] * 1_000),
    (("classes",), [f"class {number}" for number in range(110_000)]),
    (("model", "widths"), [10**9]),
    (("model", "depth"), 10**9),
    (("model", "hidden"), [10_000] * 1_000),
]


@pytest.mark.parametrize(("path", "value"), MADE_UP, ids=lambda value: str(value)[:30])
def test_sizes_that_are_made_up(path: tuple[str, ...], value: Any, cwd: Path, checkpoint: dict[str, Any]) -> None:
    torch.save(planted(checkpoint, ("hyper_parameters", *path), value), cwd / "large.ckpt")
    with pytest.raises(UserError, match="large"):
        checkpoints.open_model(cwd / "large.ckpt")
    if path[-1] == "image_size":
        arguments = ("ckpt_path=large.ckpt", "trainer=cpu")
        assert "data.image_size=" in refuse("eval", *arguments, "output_dir=out", cwd=cwd)
        assert "data.image_size=" in refuse("predict", *arguments, "inputs=photos", "output=out/x.csv", cwd=cwd)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_that_take_no_space_in_the_file(device: str, cwd: Path, checkpoint: dict[str, Any]) -> None:
    zero = torch.zeros((), device=device)
    weights = {name: zero.expand(value.shape) for name, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": weights}, cwd / "large.ckpt")
    assert "large.ckpt" in refuse("predict", "ckpt_path=large.ckpt", "inputs=photos", "output=out/x.csv", cwd=cwd)


def test_a_batch_that_is_made_up(cwd: Path, checkpoint: dict[str, Any]) -> None:
    torch.save(planted(checkpoint, ("run", "config", "data", "batch_size"), 10**18), cwd / "large.ckpt")
    assert evaluate.stored_values(cwd / "large.ckpt")["run"]["data"]["batch_size"] * 32 * 32 * 3 < 1 << 30


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_everywhere_at_once(verb: str, cwd: Path, checkpoint: dict[str, Any]) -> None:
    """All that is not needed is replaced: the numbers are those of the training, and nothing is written or called."""
    changed = copy.deepcopy({"run": checkpoint["run"]})
    config = changed["run"]["config"]
    data = {key: value for key, value in config["data"].items() if key in {"_target_", "root", *READING}}
    data |= {"cache_dir": "evil_cache", "cache": "disk", "num_workers": 1_000_000, "check": attack(cwd),
             "weights_file": "evil.csv", "augment": attack(cwd), "defaults": ["/hydra/launcher: evil"],
             "/trainer@_global_": "ddp", "trainer@_global_": {"devices": 9}, "seed": attack(cwd)}  # fmt: skip
    trainer = {"precision": config["trainer"]["precision"], "devices": 9, "profiler": attack(cwd)}
    config.update({key: attack(cwd) for key in config})
    config.update(data=data, trainer=trainer, defaults=["evil"], log_dir="evil_logs")
    config["hydra"] = {"run": {"dir": "evil_hydra"}, "output_subdir": "evil"}
    torch.save({**checkpoint, **changed}, cwd / "run" / "checkpoints" / "planted.ckpt")
    arguments = ("inputs=photos", "output=out/predictions.csv") if verb == "predict" else ("output_dir=out",)
    before = {path for path in cwd.rglob("*") if "data" not in path.parts}
    succeed(verb, "ckpt_path=run/checkpoints/planted.ckpt", "trainer=cpu", *arguments, cwd=cwd)
    left = {path.name for path in cwd.rglob("*") if path not in before and "data" not in path.relative_to(cwd).parts}
    assert left <= {"out", "predictions.csv", "metrics.json"}
    if verb == "eval":
        assert of_test(metrics(cwd / "out")) == of_test(metrics(cwd / "run"))
        with traces() as seen:
            ImageClassifier.load_from_checkpoint(cwd / "run" / "checkpoints" / "planted.ckpt")
        assert seen == []
        new = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "run_dir=begun")
        succeed("train", *new, "init_from=run/checkpoints/planted.ckpt", "debug=fast_dev_run", cwd=cwd)
        assert not [*cwd.rglob("evil*")]


def test_in_the_division_of_a_checkpoint_alone(cwd: Path, checkpoint: dict[str, Any]) -> None:
    """Without the run's split.csv, its images are divided again."""
    alone = cwd / "alone" / "model.ckpt"
    alone.parent.mkdir()
    arguments = (f"ckpt_path={alone}", "trainer=cpu", "output_dir=out")
    for key in ("fold", "num_folds", "split_seed", "limit_per_class", "group_pattern", "val_fraction"):
        torch.save(planted(checkpoint, ("run", "config", "data", key), attack(cwd)), alone)
        assert f"data.{key}" in refuse("eval", *arguments, cwd=cwd)
        assert not (cwd / "evil").exists()
    torch.save(checkpoint, alone)
    succeed("eval", *arguments, cwd=cwd)
    assert metrics(cwd / "out")["test/loss"] == metrics(cwd / "run")["test/loss"]


def of_data(checkpoint: dict[str, Any], path: Path, **changes: Any) -> tuple[str, ...]:
    """Plant changes to the data section; the arguments of an evaluation of that file."""
    torch.save(planted(checkpoint, ("run", "config", "data"), checkpoint["run"]["config"]["data"] | changes), path)
    return f"ckpt_path={path}", "trainer=cpu", "output_dir=out"


@pytest.mark.parametrize("target", ["StanfordDogsDataModule", "TorchvisionDataModule", "DigitsDataModule"])
def test_nothing_is_fetched_or_made(target: str, cwd: Path, checkpoint: dict[str, Any]) -> None:
    changes = {"_target_": f"classifier.data.{target}", "root": "evil_root", "name": "CIFAR10", "download": True}
    changes |= {"options": {"download": True}}
    with server.running() as asked:
        arguments = of_data(checkpoint, cwd / "planted.ckpt", **changes, url=asked.url, sha256=None)
        assert "evil_root" in refuse("eval", *arguments, cwd=cwd)
    assert not (cwd / "evil_root").exists()
    assert asked.requests == []


def test_nothing_is_prepared(cwd: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by us nor by Lightning, although the data is there: not even what a planted url or root would add."""
    prepared: list[Path] = []
    monkeypatch.setattr(DigitsDataModule, "prepare_data", lambda datamodule: prepared.append(datamodule.root))
    arguments = of_data(checkpoint, cwd / "planted.ckpt", _target_="classifier.data.DigitsDataModule")
    succeed("eval", *arguments, "data.num_workers=1", cwd=cwd)
    assert prepared == []


def test_a_data_module_that_is_in_no_config(cwd: Path, checkpoint: dict[str, Any]) -> None:
    arguments = of_data(checkpoint, cwd / "planted.ckpt", _target_="tests.verbs.test_planted.Payload")
    assert "configs/data/NAME.yaml" in refuse("eval", *arguments, cwd=cwd)
    succeed("eval", *arguments, "data=folder", "data.root=photos", cwd=cwd)
