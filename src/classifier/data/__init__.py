"""Files on disk -> batches of uint8 images, integer labels and sample indices."""

from classifier.data.build import build_datamodule
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.modules import (
    AnnotationCropDataModule,
    ArrayDataModule,
    CocoDataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    StanfordDogsDataModule,
    TableDataModule,
    TorchvisionDataModule,
)

__all__ = [
    "AnnotationCropDataModule",
    "ArrayDataModule",
    "ClassificationDataModule",
    "CocoDataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "StanfordDogsDataModule",
    "TableDataModule",
    "TorchvisionDataModule",
    "build_datamodule",
]
