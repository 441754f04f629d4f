"""Names of classes that nobody means."""

import logging

import pandas as pd
import pytest
from torchvision.models import ResNet18_Weights

from classifier.data.class_names import check_names, require_labels
from classifier.errors import UserError

IMAGENET = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]  # the dog is Cardigan, the garment cardigan


@pytest.mark.parametrize(
    "names",
    [["dog", "dog\u200b"], ["caf\u00e9", "cafe\u0301"], ["a b", "a\u00a0b"], ["a b", "c", "a  b"], ["x", "\ufeffx"]],
)
def test_names_that_look_the_same_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"\\|a  b") as raised:
        check_names(pd.Series(range(3, 3 + len(names)), names))
    assert ascii(names[-1]) in str(raised.value)
    assert "(3 images)" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["Cat", "cat", "dog"], "'Cat': 3, 'cat': 4"),
        (["1", "1.0"], "'1': 3, '1.0': 4"),
        (["1", "9" * 5000, "9" * 4999 + "8"], ""),
        (["\uff41", "a"], "'\uff41': 3, 'a': 4"),
        (["golden_retriever", "golden retriever"], "'golden retriever': 4"),
        (["t-shirt", "t\u2011shirt", "t_shirt"], "'t\u2011shirt': 4"),
        (["\u0441at", "cat"], "'cat': 4"),
        (["A+", "A-", "A"], ""),
        (["None", "cat"], "'None': 3"),
        (["-1", "0", "1"], "'-1': 3"),
        (["cat", "cats", "c at"], ""),
        (IMAGENET, "'Cardigan': 267, 'cardigan': 477"),
    ],
)
def test_names_that_may_be_one_are_told(names: list[str], told: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_names(pd.Series(range(3, 3 + len({*names})), [*dict.fromkeys(names)]))
    assert told in caplog.text if told else not caplog.text


TAGS = [
    "clear primary",
    "clear primary road",
    "cloudy",
    "clear primary road water",
    "clear primary water",
    "primary water",
]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (TAGS, 'label_separator=" "'),
        (["cat|dog", "cat", "bird"], 'label_separator="|"'),
        (["cat; dog", "cat"], 'label_separator=";"'),
        (["cat,indoor", "dog,indoor", "cat,outdoor", "dog,outdoor"], 'label_separator=","'),
        (["cat", "dog", "dog, cat"], 'label_separator=","'),
        *((["cat", "dog", f"cat {sign} dog"], f'label_separator="{sign}"') for sign in "&/+#"),
        (["{'choices': ['cat', 'indoor']}", "cat"], "label_separator=json"),
        ([f"w_{number:07x}" for number in range(20)], "w_0000000"),
        ([f"{number / 7:.3f}" for number in range(40)], "data.label_column="),
        ([f"{20 + number * 7 % 33}" for number in range(40)], "data.label_column="),
    ],
)
def test_columns_that_hold_no_classes_are_refused(labels: list[str], named: str) -> None:
    with pytest.raises(UserError) as raised:
        require_labels(pd.Series(labels), "tags")
    assert named in str(raised.value)
    assert "data.any_label=true" in str(raised.value)


@pytest.mark.parametrize(
    "labels",
    [
        IMAGENET * 2,
        ["golden retriever", "Labrador retriever", "pug", "black pug"],
        ["Labrador, yellow", "Labrador, black", "Poodle, black", "Poodle, white"],
        ["apple", "banana", "ripe apple", "ripe banana", "rotten apple", "rotten banana"],
        ["mask", "no mask"],
        ["Smith,John", "Smith,Jane", "Doe,Ann"],
        [str(number % 10) for number in range(40)],
        [str(number) for number in range(12)],
    ],
)
def test_ordinary_names_are_taken(labels: list[str]) -> None:
    require_labels(pd.Series(labels), "label")
