"""What the scripts on data share: the data module of their config, and a table of its classes."""

import pandas as pd
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.labels import classes_of, members
from classifier.data.samples import SPLITS
from classifier.errors import require_whole
from classifier.runs import plain


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


def class_counts(samples: pd.DataFrame, task: str) -> pd.DataFrame:
    """Number of samples of each class (index) in each part that has any, and in `all` (columns).

    With several labels an image, it counts for each of them.
    """
    labels = samples["label"]
    counts = pd.crosstab(labels, samples["split"]).reindex(labels.cat.categories, fill_value=0)
    counts = counts.reindex(columns=[part for part in SPLITS if part in counts])
    counts = counts.assign(all=labels.value_counts())
    of_class = members(labels, task).T @ counts.to_numpy()
    return pd.DataFrame(of_class, classes_of(labels, task).rename(counts.index.name), counts.columns)


def class_table(counts: pd.DataFrame) -> str:
    """What `class_counts` returns, as text, the largest class first; of many classes, those in between are left out."""
    by_size = counts.sort_values("all", ascending=False, kind="stable")
    total = counts.sum().to_frame(f"all {counted(len(counts), 'class')}").T
    return f"{pd.concat([by_size, total]).to_string(max_rows=40)}\n"


def counted(number: int, word: str) -> str:
    """A number with its word: 1 image, 2,000 classes."""
    return f"{number:,} {word}{'' if number == 1 else 'es' if word[-1] in 'sx' else 's'}"
