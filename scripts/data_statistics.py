"""What the training images are like: python scripts/data_statistics.py data=folder data.root=my_photos"""

from omegaconf import DictConfig

from classifier.cli import main

# (Not statistics.py: in this folder that would hide Python's own module from every script.)


def statistics(config: DictConfig) -> object:
    from classifier.tools.statistics import statistics  # not at the top: `--help` needs no torch

    return statistics(config)


if __name__ == "__main__":
    main("data_statistics", statistics)
