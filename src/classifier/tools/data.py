"""What the scripts on data share: the data module of their config, and a table of its classes."""

import pandas as pd
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from classifier.config import plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import SPLITS
from classifier.errors import require_whole

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
    counts = counts.loc[:, counts.any()]
    return counts.assign(all=samples["label"].value_counts().reindex(counts.index))


def class_table(counts: pd.DataFrame) -> Table:
    """What `class_counts` returns, to be printed."""
    shown, title = counts, "images"
    if len(counts) > SHOWN:
        by_size = counts.sort_values("all", ascending=False, kind="stable")
        shown = pd.concat([by_size.head(SHOWN // 2), by_size.tail(SHOWN // 2)])
        title = f"images of the largest and smallest of {len(counts)} classes"
    table = Table(title=title)
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(str(part), justify="right", no_wrap=True)
    for name, *numbers in shown.itertuples():
        table.add_row(Text(name), *(f"{number:,}" for number in numbers))  # Text: brackets in a name are not markup
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in counts.sum()))
    return table
