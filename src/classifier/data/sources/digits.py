"""The embedded example: 1,797 handwritten digits of 8x8 pixels, from scikit-learn.

Format: grey PNG in class folders `0` to `9`, written once below `root`.
Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(its test part, as scikit-learn's load_digits ships it). Licence: CC BY 4.0.
"""

import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from classifier.data.sources.folder import FolderSource


class DigitsSource(FolderSource):
    """An image folder that writes itself; a second process waits for the first."""

    def prepare(self) -> None:
        if self.root.is_dir():
            return
        from sklearn.datasets import load_digits  # takes a second to import

        self.root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.root}.lock"):
            if self.root.is_dir():
                return
            scratch = Path(f"{self.root}.part")
            shutil.rmtree(scratch, ignore_errors=True)
            digits = load_digits()
            for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
                path = scratch / str(label) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # the data set counts ink from 0 to 16
                Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(path)
            scratch.rename(self.root)
