"""Evaluate a checkpoint: python src/eval.py ckpt_path=latest split=val"""

from omegaconf import DictConfig

from classifier.cli import main


def evaluate(config: DictConfig) -> object:
    from classifier import verbs  # not at the top: `--help` does without torch

    return verbs.evaluate(config)


if __name__ == "__main__":
    main("eval", evaluate)
