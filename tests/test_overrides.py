"""The command line's grammar."""

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classifier import overrides


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
