"""Files on disk -> batches of uint8 images, integer labels and sample indices."""

from classifier.data.datamodule import ClassificationDataModule, build_datamodule
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
