"""Files on disk -> batches of uint8 images, integer labels and sample indices."""

from classifier.data.annotation_crop import AnnotationCropDataModule
from classifier.data.arrays import ArrayDataModule
from classifier.data.coco import CocoDataModule
from classifier.data.datamodule import ClassificationDataModule, build_datamodule
from classifier.data.digits import DigitsDataModule
from classifier.data.image_folder import ImageFolderDataModule
from classifier.data.stanford_dogs import StanfordDogsDataModule
from classifier.data.table import TableDataModule
from classifier.data.torchvision_set import TorchvisionDataModule

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
