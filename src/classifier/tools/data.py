"""What the scripts on data share: the data module of their config, and a table of its classes."""

import pandas as pd
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import SPLITS
from classifier.errors import require_whole
from classifier.runs import plain

SHOWN = 40  # classes; of more, those with most and fewest images


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


def class_counts(samples: pd.DataFrame) -> pd.DataFrame:
    """Number of samples of each class (index) in each part that has any, and in `all` (columns)."""
    counts = pd.crosstab(samples["label"], samples["split"])
    counts = counts.reindex(index=samples["label"].cat.categories, columns=[*SPLITS], fill_value=0)
    counts = counts.loc[:, counts.any()].rename_axis(columns=None)
    return counts.assign(all=samples["label"].value_counts().reindex(counts.index))


def class_table(counts: pd.DataFrame) -> str:
    """What `class_counts` returns, as text."""
    title, total = "images", counts.sum().to_frame("all").T
    if len(counts) > SHOWN:
        title = f"images of the largest and smallest of {len(counts)} classes"
        by_size = counts.sort_values("all", ascending=False, kind="stable")
        counts = pd.concat([by_size.head(SHOWN // 2), by_size.tail(SHOWN // 2)])
    return f"{title}:\n{pd.concat([counts, total]).to_string()}\n"
