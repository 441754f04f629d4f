"""What the entry points do: each verb is one function from a config to its result."""

from classifier.verbs.evaluate import evaluate, stored_values
from classifier.verbs.predict import predict, stored_precision
from classifier.verbs.train import train

__all__ = ["evaluate", "predict", "stored_precision", "stored_values", "train"]
