"""The embedded example: 1,797 handwritten digits of 8x8 pixels, from scikit-learn.

Format: grey PNG in class folders `0` to `9`, written once below `root`.
Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(its test part, as scikit-learn's load_digits ships it). Licence: CC BY 4.0.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from classifier.data.image_folder import ImageFolderDataModule
from classifier.files import made_once


class DigitsDataModule(ImageFolderDataModule):
    """An image folder that writes itself; a second process waits for the first."""

    def __init__(self, root: str | Path = "data/digits", **settings: Any) -> None:
        super().__init__(root, **settings)

    def prepare_data(self) -> None:
        made_once(self.root, _write, "data.root")


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # the data set counts ink from 0 to 16
        Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(path)
