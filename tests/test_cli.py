"""The command line's grammar."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classifier import cli
from classifier.errors import UserError
from tests.verbs.command import REPOSITORY, run

STRINGS = [
    "a b",
    "epoch=3.ckpt",
    "it's",
    r"C:\Users\me",
    r"\\server\share",
    "ends\\",
    r"a\'b",
    "ü[1](2)*?{x},y",
    "$HOME",
]
PATTERNS = [r"(patient_\d+)", r"^([^_]+)_", r"[a-z]{1,3}\d", r"\\(x)$", r"\(x\)", "it's|a=b *"]
AS_HYDRA_READS_IT = ["a.b=null", "a=1e-3", "a=[1,2]", "a={train: a, val: b}", "a='b c'", 'a="b=c"', "a=true", "a=???",
                     "a=${b}", "-cn", "~a"]  # fmt: skip


def parsed(text: str) -> object:
    """What Hydra reads."""
    return OverridesParser.create().parse_override(text).value()


@pytest.mark.parametrize("value", [*STRINGS, "'"])
def test_override_arrives_as_it_was(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", cli.override("key", value)])
    assert cli.argument("key") == value
    assert parsed(cli.override("key", value)) == value


@pytest.mark.parametrize("value", [*STRINGS, *PATTERNS])
@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_strings_are_typed_as_they_are(value: str, multirun: tuple[str, ...]) -> None:
    *_, text = cli.quoted([*multirun, f"data.root={value}"])
    assert parsed(text) == value
    assert cli.quoted([text]) == [text], "another process gets it quoted already"


def test_what_hydra_reads_stays() -> None:
    assert cli.quoted(AS_HYDRA_READS_IT) == AS_HYDRA_READS_IT


def test_several_values_are_for_multirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    typed = ["data.root=~/a,b", "name=~x", "log_dir=a~b"]
    assert cli.quoted(typed) == ["data.root='/home/me/a,b'", "name='~x'", "log_dir='a~b'"]
    assert cli.quoted(["-m", "data.root=~/a,~/b"]) == ["-m", "data.root=/home/me/a,/home/me/b"]
    assert cli.quoted(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]
    assert cli.quoted(["model=resnet18,resnet50"]) == ["model=resnet18,resnet50"], "Hydra says that -m is missing"


def test_a_group_is_switched_off() -> None:
    assert cli.quoted(["scheduler=null", "experiment=null", "seed=null"]) == ["~scheduler", "~experiment", "seed=null"]


def test_what_is_no_override() -> None:
    for typed, said in (
        ("--experiment=digits", "experiment=digits"),
        ("--epochs", "epochs=VALUE"),
        ("a.b=", "a.b=VALUE"),
    ):
        with pytest.raises(UserError, match=said):
            cli.quoted([typed])


def test_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = {"a=b.ckpt": "b.ckpt", "a='b c'": "b c", "a=2024_01": "2024_01", "a=null": None, "x=1": None, "+a=b": "b"}
    for text, value in typed.items():
        monkeypatch.setattr(sys, "argv", ["eval.py", text])
        assert cli.argument("a") == value


def test_command_line_is_read_without_torch() -> None:
    heavy = ("torch", "timm", "torchvision", "pandas")
    code = f"import sys, classifier.cli; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("verb", ["train", "eval", "predict"])
def test_help_and_config_need_no_checkpoint(verb: str, tmp_path: Path) -> None:
    result = run(verb, "--help", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert (REPOSITORY / "configs" / f"{verb}.yaml").read_text().splitlines()[0] in result.out
    assert "trainer: cpu, ddp" in result.out
    shown = dict(line.split("  # ", 1) for line in result.out.splitlines() if "  # " in line)
    assert shown["  precision: 32-true"].startswith("32-true, bf16-mixed")
    assert shown["trainer:"] == (REPOSITORY / "configs/trainer/default.yaml").read_text().splitlines()[0][2:]
    assert shown["log_dir: logs"]
    assert not any(line.lstrip().startswith("-") for line in shown), "only keys have comments"


def test_help_explains_what_is_composed(tmp_path: Path) -> None:
    """Of the files that are chosen, those below them, and where an experiment has a reason: what the key means."""
    out = run("train", "--help", "model=resnet18", "augment=light", "optimizer=sgd", cwd=tmp_path).out
    for said in ("lr: 0.003  # ", "drop_rate: 0.0  # before the head", "scale:  # share of the area", "augment:  # ",
                 "val_fraction: 0.1  # cut", "monitor: val/loss  # what best.ckpt"):  # fmt: skip
        assert said in out
