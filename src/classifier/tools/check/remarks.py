"""The kinds of things that a data check remarks upon, and how bad each is."""

from dataclasses import dataclass
from enum import Enum

SEVERITIES = ("error", "warning", "info")


class Kind(Enum):
    """What can be wrong: its name, its severity and what it means.

    An error stops or falsifies a training, a warning deserves a look, and an info is dealt with in reading.
    """

    EMPTY = "empty file", "error", "it has no bytes"
    TRUNCATED = "truncated", "error", "the file was cut off"
    UNREADABLE = "unreadable", "error", "no image, a damaged one, or a file that cannot be opened"
    BOMB = "too many pixels", "error", "decoding is refused, as it could take all memory"
    ANNOTATION = "unusable annotation", "error", "training refuses it as well"
    BOX_OUTSIDE = "box outside", "error", "no part of the box lies in the image"
    OTHER_CLASS = "same, other class", "error", "equal images with different labels"
    LEAK = "same in two parts", "error", "equal images in training and in evaluation, whose score they falsify"
    DIVIDED_GROUP = "divided group", "error", "one group in two prescribed parts"
    ONE_CLASS = "one class", "error", "a classifier needs two at least"
    UNTRAINED = "untrained class", "error", "the class has no training images"

    EXTENSION = "wrong extension", "warning", "the content has another format than the name says"
    ANIMATED = "several frames", "warning", "only the first one is read"
    TINY = "tiny", "warning", "a side has fewer pixels than min_side"
    HUGE = "huge", "warning", "more pixels than max_pixels: slow to decode"
    BOX_CUT = "box cut", "warning", "the box reaches over the edge of the image, and is cut there"
    TWICE = "same twice", "warning", "equal images of one class, in one part"
    ALIKE_OTHER_CLASS = "alike, other class", "warning", "nearly equal images with different labels"
    ALIKE_LEAK = "alike in two parts", "warning", "nearly equal images in training and in evaluation"
    MISSING_CLASS = "missing class", "warning", "a part of the data has none of its images"
    FEW = "few images", "warning", "the class has fewer than min_per_class"
    IMBALANCE = "imbalance", "warning", "the largest class has over max_imbalance times the images of the smallest"

    ALIKE = "alike", "info", "nearly equal images of one class, in one part"
    UPSCALED = "enlarged", "info", "smaller than data.image_size"
    ROTATED = "turned by EXIF", "info", "turned upright in reading"
    DEEP = "16 bits", "info", "scaled to 8 bits in reading"
    CMYK = "CMYK", "info", "converted to RGB in reading"
    PALETTE = "palette", "info", "converted to RGB in reading"
    ALPHA = "transparency", "info", "laid on white in reading"

    def __init__(self, title: str, severity: str, meaning: str) -> None:
        self.title = title
        self.severity = severity
        self.meaning = meaning


@dataclass(frozen=True)
class Remark:
    """One thing that was found.

    Args:
        names: Paths of the images concerned, relative to the data's root: one, or those that are alike. Of what is
            said about a class, its name.
        detail: What was found there, in a few words.
    """

    kind: Kind
    names: tuple[str, ...]
    detail: str = ""
