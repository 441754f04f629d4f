"""Train, evaluate and use image classifiers: Lightning runs them, Hydra composes them."""

__version__ = "0.1.0"
