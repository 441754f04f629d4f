"""Logits -> learning: the LightningModule, its callbacks, loggers, optimisers and schedules."""

from classifier.training.module import ImageClassifier

__all__ = ["ImageClassifier"]
