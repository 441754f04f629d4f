from typing import Any

import numpy as np
import pytest

from classifier.errors import UserError, as_typed, require_choice, require_number, require_whole


def test_what_fits_passes() -> None:
    require_choice("data.cache", "disk", ("none", "disk"))
    for value in (3, np.int64(4)):
        require_whole("data.fold", value, 3, 4)
    for number in (0, -1.5, np.float32(2)):
        require_number("data.margin", number)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ([1, None, [2.5]], "[1,null,[2.5]]"), ((3, 4), "[3,4]"), ({"a": ["b"]}, "{a:[b]}"),
     ("a b", "a b"), (1e-05, "1e-05"), (float("inf"), "inf"), ("caf\udce9", r"caf\udce9")],
)  # fmt: skip
def test_values_are_shown_as_they_are_typed(value: Any, text: str) -> None:
    assert as_typed(value) == text


def test_an_unknown_choice() -> None:
    for value, named in (("dsk", ["disk"]), (7, ["none", "disk"])):
        with pytest.raises(UserError) as refusal:
            require_choice("data.cache", value, ("none", "disk"))
        assert f"data.cache={value}" in str(refusal.value)
        assert [name for name in ("none", "disk") if name in str(refusal.value)] == named


@pytest.mark.parametrize("value", [2, 5, 3.0, "3", True, None, float("nan")])
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(UserError, match=rf"^data\.fold={as_typed(value)} .* 3 .* 4"):
        require_whole("data.fold", value, 3, 4, ", or null")


def test_number_within_limits() -> None:
    for limits, wrong, right in (({"least": 0}, -1, 0), ({"above": 0}, 0, 0.1), ({"least": 0, "most": 1}, 1.5, 1)):
        require_number("key", right, **limits)
        for value in (wrong, True, "3", None, float("nan"), float("inf")):
            with pytest.raises(UserError, match=rf"^key={as_typed(value)} .* {limits.get('most', 0)}$"):
                require_number("key", value, **limits)
