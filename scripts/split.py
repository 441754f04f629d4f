"""Write the split as folders: python scripts/split.py output=my_split data=folder data.root=my_photos"""

from omegaconf import DictConfig

from classifier.cli import main


def split(config: DictConfig) -> object:
    from classifier.tools.folders import split  # not at the top: `--help` does without torch

    return split(config)


if __name__ == "__main__":
    main("split", split)
