"""Batches -> logits: plain torch modules, without Lightning."""

from classifier.models.build import build_model, require_image_size
from classifier.models.normalize import Normalize
from classifier.models.simple_cnn import SimpleCNN
from classifier.models.timm_model import timm_model

__all__ = ["Normalize", "SimpleCNN", "build_model", "require_image_size", "timm_model"]
