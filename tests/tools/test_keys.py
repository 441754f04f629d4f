from typing import Any

import pytest
from omegaconf import DictConfig

from classifier.errors import UserError
from classifier.tools.data import choice, flag, whole


def test_what_fits_is_returned() -> None:
    config = DictConfig({"count": 3, "overwrite": True, "format": "png"})
    assert whole(config, "count", 3, 3) == 3
    assert flag(config, "overwrite") is True
    assert choice(config, "format", ("jpg", "png")) == "png"


@pytest.mark.parametrize("value", [0, 2.5, "many", True, None])
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(UserError, match=rf"^count={value} must be a whole number of at least 1$"):
        whole(DictConfig({"count": value}), "count", 1)


def test_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^quality=101 must be a whole number from 1 to 100$"):
        whole(DictConfig({"quality": 101}), "quality", 1, 100)


@pytest.mark.parametrize("value", ["maybe", 1, None])
def test_no_flag(value: Any) -> None:
    with pytest.raises(UserError, match=rf"^overwrite={value} must be true or false$"):
        flag(DictConfig({"overwrite": value}), "overwrite")


def test_no_choice() -> None:
    with pytest.raises(UserError, match=r"^format=jpeg is unknown: did you mean jpg\?$"):
        choice(DictConfig({"format": "jpeg"}), "format", ("jpg", "png"))
