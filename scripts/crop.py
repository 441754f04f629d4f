"""Write boxes or images as class folders: python scripts/crop.py output=my_crops data=folder data.root=my_photos"""

from omegaconf import DictConfig

from classifier.cli import main


def crop(config: DictConfig) -> object:
    from classifier.tools.folders import crop  # not at the top: `--help` needs no torch

    return crop(config)


if __name__ == "__main__":
    main("crop", crop)
