"""The config of a script -> its data module, ready to read."""

from omegaconf import DictConfig

from classifier.config import plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import require_whole


def open_data(config: DictConfig) -> ClassificationDataModule:
    """The data module of `config.data`, its samples listed, checked and split.

    Raises:
        UserError: Wrong input.
    """
    require_whole("seed", config.seed, 0)
    datamodule = build_datamodule(plain(config.data))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule
