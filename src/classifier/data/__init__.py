"""Files on disk -> batches of uint8 images, integer labels and sample indices."""

from classifier.data.datamodule import ClassificationDataModule, build_datamodule

__all__ = ["ClassificationDataModule", "build_datamodule"]
