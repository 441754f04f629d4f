import pytest

from classifier.tools.folders import LONGEST, distinct, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("dog", "dog"),
        ("Dr. Who 100%", "Dr. Who 100%"),
        ("犬", "犬"),
        ("a/b\\c:d", "a_b_c_d"),
        ("../up", "_._up"),
        (".hidden", "_hidden"),
        ("dot.", "dot_"),
        (" blank\n", "blank_"),
        ("", "_"),
        ("..", "__"),
        ("con", "_con"),
        ("lpt1.x", "_lpt1.x"),
        ("console", "console"),
    ],
)
def test_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_long_name_is_cut_between_characters() -> None:
    assert safe_name("ü" * 150) == "ü" * (LONGEST // 2)


def test_distinct() -> None:
    names = [("1", ".jpg"), ("1", ".jpg"), ("1_2", ".jpg"), ("1", ".JPG"), ("1", ".png"), ("e\u0301", ""), ("é", "")]
    assert distinct(names) == ["1.jpg", "1_3.jpg", "1_2.jpg", "1_4.JPG", "1.png", "e\u0301", "é_2"]
    many = distinct([("x", ".jpg")] * 20_000)  # in linear time
    assert len(set(many)) == 20_000
    assert many[-1] == "x_20000.jpg"
