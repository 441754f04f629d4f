"""What the training images are like: python scripts/data_statistics.py data=folder data.root=my_photos"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from omegaconf import DictConfig

from classifier.cli import main

# (Not statistics.py: in this folder that would hide Python's own module from every script.)


def statistics(config: DictConfig) -> object:
    from classifier.tools.statistics import statistics  # not at the top: `--help` needs no torch

    return statistics(config)


if __name__ == "__main__":
    main("data_statistics", statistics)
