"""Files on disk -> batches of uint8 images, integer labels and sample indices."""

from classifier.data.annotation_crop import AnnotationCropDataModule as AnnotationCropDataModule
from classifier.data.arrays import ArrayDataModule as ArrayDataModule
from classifier.data.coco import CocoDataModule as CocoDataModule
from classifier.data.datamodule import ClassificationDataModule as ClassificationDataModule
from classifier.data.datamodule import build_datamodule as build_datamodule
from classifier.data.digits import DigitsDataModule as DigitsDataModule
from classifier.data.image_folder import ImageFolderDataModule as ImageFolderDataModule
from classifier.data.stanford_dogs import StanfordDogsDataModule as StanfordDogsDataModule
from classifier.data.table import TableDataModule as TableDataModule
from classifier.data.torchvision_set import TorchvisionDataModule as TorchvisionDataModule
