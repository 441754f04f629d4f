"""What the entry points do: each verb is one function from a config to its result."""

from classifier.verbs.evaluate import evaluate
from classifier.verbs.predict import predict
from classifier.verbs.train import train

__all__ = ["evaluate", "predict", "train"]
