"""Draw samples as training sees them: python scripts/preview.py data=folder data.root=my_photos"""

from omegaconf import DictConfig

from classifier.cli import main


def preview(config: DictConfig) -> object:
    from classifier.tools.preview import preview  # not at the top: `--help` needs no torch

    return preview(config)


if __name__ == "__main__":
    main("preview", preview)
