"""Networks: plain torch modules that turn a batch of images into logits."""

from classifier.models.network import Normalize, register_network
from classifier.models.resnet9 import ResNet9
from classifier.models.simple_cnn import SimpleCNN
from classifier.models.timm_model import timm_model

__all__ = ["Normalize", "ResNet9", "SimpleCNN", "register_network", "timm_model"]
