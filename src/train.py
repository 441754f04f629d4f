"""Train a classifier: python src/train.py experiment=dogs_resnet trainer.max_epochs=5"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from omegaconf import DictConfig

from classifier.cli import begin_or_resume, main


def train(config: DictConfig) -> object:
    from classifier.verbs.train import train  # not at the top: `--help` does without torch

    return train(config)


if __name__ == "__main__":
    main("train", train, begin_or_resume)
