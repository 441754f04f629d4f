"""The command line's grammar."""

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classifier import cli as overrides


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "epoch=3.ckpt",
        "it's",
        "C:\\Users\\me",
        "\\\\server\\share",
        "ends\\",
        "a\\'b",
        "ü[1](2)*?{x},y",
        "$HOME",
        "'",
    ],
)
def test_override_arrives_as_it_was(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", overrides.override("key", value)])
    assert overrides.argument("key") == value
    (parsed,) = OverridesParser.create().parse_overrides([overrides.override("key", value)])
    assert parsed.value() == value


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("ckpt_path=a.ckpt", "a.ckpt"),
        ("ckpt_path='a b'", "a b"),
        ("ckpt_path=null", None),
        ("x=1", None),
        ("+ckpt_path=a", "a"),
    ],
)
def test_argument(typed: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", typed])
    assert overrides.argument("ckpt_path") == value


def test_paths_are_quoted_where_they_are_typed() -> None:
    typed = ["data.table=a b=1.csv", "data.root={x}", "data.images={train: a, val: b}", "data.image_sets=null"]
    assert overrides.quoted(typed) == ["data.table='a b=1.csv'", "data.root='{x}'", typed[2], typed[3]]


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert overrides.quoted(["data.root=~/a,b", "name=~x", "log_dir=a~b"]) == [
        "data.root='/home/me/a,b'",
        "name=~x",
        "log_dir='a~b'",
    ]
    assert overrides.quoted(["-m", "data.root=~/a,~/b"]) == ["-m", "data.root=/home/me/a,/home/me/b"]


@pytest.mark.parametrize("pattern", [r"(patient_\d+)", r"^([^_]+)_", r"[a-z]{1,3}\d", r"\\(x)$", "it's|a=b *"])
@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_regular_expressions_are_typed_as_they_are(pattern: str, multirun: tuple[str, ...]) -> None:
    *_, text = overrides.quoted([*multirun, f"data.group_pattern={pattern}"])
    (parsed,) = OverridesParser.create().parse_overrides([text])
    assert parsed.value() == pattern
    assert overrides.quoted([text]) == [text], "another process gets it quoted already"


def test_no_regular_expression_is_typed_as_ever() -> None:
    typed = ["data.group_pattern=null", "data.group_pattern='a(b)'", "data.group_pattern="]
    assert overrides.quoted(typed) == typed
