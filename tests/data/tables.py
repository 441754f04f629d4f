"""Tables of samples, made by hand."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from classifier.data.samples import BOX


def make_table(
    paths: Sequence[str],
    labels: Sequence[int] | np.ndarray | None = None,
    classes: Sequence[str] = ("a", "b"),
    *,
    boxes: Sequence[Sequence[int]] | np.ndarray | None = None,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    names = np.array([*classes])[np.zeros(len(paths), int) if labels is None else np.asarray(labels, int)]
    table = pd.DataFrame({"path": pd.Series(paths, dtype="str"), "label": pd.Categorical(names, categories=[*classes])})
    if boxes is not None:
        table = table.assign(**dict(zip(BOX, np.array(boxes, np.int32).reshape(-1, 4).T, strict=True)))
    for name, texts in (("split", splits), ("group", groups)):
        if texts is not None:
            table[name] = pd.array(texts, dtype="str")
    return table
