"""Stanford Dogs: 20,580 photographs of 120 breeds with boxes.

Format: JPEG images (at least one of them, n02105855_2933.jpg, is really a PNG with alpha), PASCAL VOC XML without a
file extension, official split in MATLAB files (12,000 train, 8,580 test, no validation part).
Source: A. Khosla, N. Jayadevaprakash, B. Yao, L. Fei-Fei, Novel Dataset for Fine-Grained Image Categorization,
FGVC at CVPR 2011, http://vision.stanford.edu/aditya86/ImageNetDogs/
Licence: none stated; the images come from ImageNet's training set (research use). A network pretrained on ImageNet
has therefore seen the test images: its score here is optimistic.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.io import loadmat

from classifier.data.annotation_crop import AnnotationCropDataModule
from classifier.data.download import download, extract
from classifier.data.samples import order_classes, usable
from classifier.errors import UserError
from classifier.files import locked

URL = "http://vision.stanford.edu/aditya86/ImageNetDogs"
# archive -> its SHA-256; each entry is in one of them
ARCHIVES = {
    "images.tar": "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    "annotation.tar": "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
    "lists.tar": "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
}
ENTRIES = {"Images": "images.tar", "Annotation": "annotation.tar"}
ENTRIES |= {"train_list.mat": "lists.tar", "test_list.mat": "lists.tar"}


class StanfordDogsDataModule(AnnotationCropDataModule):
    """The official layout below `root`: Images/, Annotation/, train_list.mat, test_list.mat.

    Args:
        download: Fetch what is missing.
        url: Where the three archives lie.
        sha256: Archive name -> checksum, where they are not the official ones.
        objects, margin: See `AnnotationCropDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        download: bool = True,
        url: str = URL,
        sha256: dict[str, str] | None = None,
        objects: str = "largest",
        **settings: Any,
    ) -> None:
        settings |= {"images": "Images", "annotations": "Annotation", "class_from": "folder", "objects": objects}
        settings |= {"scale_boxes": False}  # its boxes are of the images as they are
        super().__init__(root, **settings)
        self.download = download
        self.url = url.rstrip("/")
        self.sha256 = {**ARCHIVES, **(sha256 or {})}

    def prepare_data(self) -> None:
        """Download and unpack what is missing; a second process waits for the first."""
        if not self.download or all((self.root / entry).exists() for entry in ENTRIES):
            return
        with locked(self.root / ".lock", "data.root"):
            for entry, archive in ENTRIES.items():
                if not (self.root / entry).exists():
                    download(f"{self.url}/{archive}", self.root / archive, self.sha256[archive])
                    extract(self.root / archive, self.root, entry)

    def list_samples(self) -> pd.DataFrame:
        """List the boxes with the official split and readable class names, in the folders' order."""
        parts = {f"Images/{path}": part for part in ("train", "test") for path in self._official_list(part)}
        table = super().list_samples()
        folders = pd.Categorical(table["label"], categories=order_classes(table["label"][usable(table)]))
        labels = folders.rename_categories(lambda folder: folder.partition("-")[2] or folder)
        table = table.assign(label=labels, split=table["path"].map(parts).astype("str"))
        return table[table["split"].notna() | ~usable(table)].reset_index(drop=True)

    def _official_list(self, part: str) -> list[str]:
        path = self.root / f"{part}_list.mat"
        try:
            return [str(np.ravel(entry)[0]) for entry in np.ravel(loadmat(path)["file_list"])]
        except Exception as error:  # scipy's reader raises many kinds on missing and damaged files
            raise UserError(f"cannot read {path} ({error}): remove it, and use data.download=true") from error
