"""Batches -> logits: plain torch modules, without Lightning or Hydra."""

from classifier.models.network import Normalize
from classifier.models.resnet9 import ResNet9
from classifier.models.simple_cnn import SimpleCNN
from classifier.models.timm_model import timm_model

__all__ = ["Normalize", "ResNet9", "SimpleCNN", "timm_model"]
