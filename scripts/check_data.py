"""Report what is wrong with a data set: python scripts/check_data.py data=folder data.root=my_photos"""

from omegaconf import DictConfig

from classifier.cli import main


def check(config: DictConfig) -> int:
    from classifier.tools.check_data import check_data  # not at the top: `--help` needs no torch

    return check_data(config)


if __name__ == "__main__":
    main("check_data", check)
